"""A model written as a folder in Hugging Face's layout."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from rag_jax.models.io.configs import describe_config
from rag_jax.models.io.load import Pretrained
from rag_jax.models.io.weights import Slot, list_slots
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import replace_folder, write_json

_INDEX = "model.safetensors.index.json"
# What a folder may hold that is replaced: what is written here, and what a model comes with.
_REPLACEABLE = ("*.safetensors", "*.json", "*.jinja")


def save(
    pretrained: Pretrained, path: str | os.PathLike, *, shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a folder that `load` reads, and transformers' `Auto` classes.

    What `load` reads from it has the same parameters to the bit, in the dtype they have here.
    Nothing is ever half written; a model already there is replaced.

    Args:
        path: the folder.
        shard_bytes: weights beyond so many bytes are split into several files, as transformers
            does; a larger tensor has a file of its own.

    Raises:
        RagJaxError: the parameters are not those of the model (an adapter is folded into them
            first), or there is something else in the folder.
        OSError: the disk is full or cannot be written.
    """
    folder = Path(path).expanduser().absolute()
    slots = list_slots(pretrained.config)
    _check_params(pretrained.params, slots)
    check_replaceable(folder, _REPLACEABLE, "a model")
    with replace_folder(folder) as new:
        dtype = _find(pretrained.params, slots[0].path).dtype
        tokenizer = pretrained.tokenizer
        tokenizer.save(new, max_length=pretrained.config.max_length)
        fields = {
            **describe_config(pretrained.config),
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            "dtype": dtype.name,
        }
        write_json(new / "config.json", fields)
        _write_weights(new, pretrained.params, slots, shard_bytes)


def check_replaceable(folder: Path, known: Sequence[str], what: str) -> None:
    """Raises unless a folder may be replaced: it is not there, or all that it holds is known.

    Args:
        known: patterns of file names.
        what: such files are, for the error.

    Raises:
        RagJaxError: there is something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RagJaxError(f"{folder} is a file: save into a folder")
    files = {file for pattern in known for file in folder.glob(pattern)}
    if other := sorted(file.name for file in set(folder.iterdir()) - files):
        raise RagJaxError(
            f"{folder} holds something else than {what} ({other[0]}): save into another folder"
        )


def _write_weights(folder: Path, params: dict, slots: Sequence[Slot], shard_bytes: int) -> None:
    groups = _group_by_name(slots)
    shards: list[list[str]] = [[]]
    size, total = 0, 0
    for name, parts in groups.items():
        bytes_ = sum(_find(params, part.path).nbytes for part in parts)
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + bytes_, total + bytes_
    places = {}
    for i, names in enumerate(shards):
        number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{number}.safetensors"
        tensors = {name: _read_tensor(params, groups[name]) for name in names}
        # transformers wants to be told which library's layout it is.
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _read_tensor(params: dict, parts: Sequence[Slot]) -> np.ndarray:
    """One tensor as Hugging Face stores it, from the parameters that are its parts."""
    arrays = []
    for part in sorted(parts, key=lambda part: part.rows or (0, 0)):
        array = np.asarray(jax.device_get(_find(params, part.path)))
        arrays.append(array.T if part.transposed else array)
    return np.ascontiguousarray(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


def _group_by_name(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.name, []).append(slot)
    return {
        name: sorted(parts, key=lambda part: part.rows or (0, 0)) for name, parts in groups.items()
    }


def _find(params: dict, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params


def _check_params(params: dict, slots: Sequence[Slot]) -> None:
    found = dict(_walk(params, ""))
    expected = {slot.path: slot.shape for slot in slots}
    problems = [f"missing {path} {list(expected[path])}" for path in expected.keys() - found.keys()]
    for path, leaf in found.items():
        shape = list(leaf.shape)
        if path not in expected:
            hint = " (fold the adapter into the weights first)" if "/lora_" in path else ""
            problems.append(f"no place for {path} {shape}{hint}")
        elif leaf.shape != expected[path]:
            problems.append(f"{path} has shape {shape}, the config wants {list(expected[path])}")
    if problems:
        raise RagJaxError(f"the parameters do not fit the config: {'; '.join(sorted(problems))}")


def _walk(tree: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, below in tree.items():
        if isinstance(below, dict):
            yield from _walk(below, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", below
