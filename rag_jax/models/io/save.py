"""Saving of a model as a folder in Hugging Face's layout."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from rag_jax.models.io.configs import describe_config
from rag_jax.models.io.load import Pretrained
from rag_jax.models.io.sentence import FOLDERS, Sentence, write_sentence
from rag_jax.models.io.weights import Slot, get_leaf, list_slots
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import replace_folder, write_json
from rag_jax.runtime.paths import expand_path

# The files of a model folder, which `save` may delete.
_REPLACEABLE = ("*.safetensors", "*.json", "*.jinja", *FOLDERS)


@checked
def save(
    pretrained: Pretrained, path: str | os.PathLike, *, shard_bytes: int = 5_000_000_000
) -> None:
    """Saves a model as a folder for `load` and for transformers' `Auto` classes.

    The parameters are stored bit for bit, in their current dtype. The folder appears only when it
    is complete, and replaces a model that is already at `path`.

    Args:
        pretrained: the model. Adapters must be folded into the weights first.
        shard_bytes: maximum size of a weight file in bytes; larger models are split into several
            files, as in transformers. A tensor above this size gets a separate file.

    Raises:
        RagJaxError: the parameters contradict the config, or `path` holds other files.
        OSError: the disk is full or not writable.
    """
    write_model(pretrained, path, list_slots(pretrained.config), shard_bytes=shard_bytes)


def write_model(
    pretrained: Pretrained,
    path: str | os.PathLike,
    slots: Sequence[Slot],
    *,
    shard_bytes: int = 5_000_000_000,
    **changes: Any,
) -> None:
    """As `save`, of a model whose parameters have other slots, or whose config has other fields.

    Args:
        changes: fields of `config.json`.
    """
    folder = expand_path(path).absolute()
    pooling = getattr(pretrained.model, "pooling", None)
    beside = {layer.name for layer in pooling.dense} if pooling else set()
    weights = {name: leaf for name, leaf in pretrained.params.items() if name not in beside}
    _check_params(weights, slots)
    check_replaceable(folder, _REPLACEABLE, "a model")
    with replace_folder(folder) as new:
        tokenizer = pretrained.tokenizer
        config = pretrained.config
        typed = isinstance(config, BertConfig) and config.reads_types
        tokenizer.save(new, max_length=config.max_length, typed=typed)
        fields = {
            "pad_token_id": tokenizer.pad_id,  # but where positions begin after it
            **describe_config(config),
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": _describe_stops(tokenizer),
            "dtype": get_leaf(pretrained.params, slots[0].path).dtype.name,
            **changes,
        }
        write_json(new / "config.json", fields)
        _write_weights(new, weights, slots, shard_bytes)
        if pooling is not None:
            sentence = pretrained.sentence or Sentence()
            width = pretrained.config.hidden_size
            write_sentence(new, pooling, sentence, pretrained.params, width=width)


def _describe_stops(tokenizer: Tokenizer) -> int | list[int] | None:
    """The field `eos_token_id`: one id, or the list of several."""
    stop_ids = tokenizer.stop_ids
    return list(stop_ids) if len(stop_ids) > 1 else next(iter(stop_ids), None)


def check_replaceable(folder: Path, known: Sequence[str], what: str) -> None:
    """Checks that a folder may be replaced: it does not exist, or contains only known files.

    Args:
        known: glob patterns of the files that may be deleted.
        what: noun with article for the folder's usual contents, for the error message.

    Raises:
        RagJaxError: the path is a file, or the folder contains other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RagJaxError(f"{folder} is a file: save into a folder")
    known_files = {file for pattern in known for file in folder.glob(pattern)}
    if other := sorted(file.name for file in set(folder.iterdir()) - known_files):
        raise RagJaxError(
            f"{folder} contains {other[0]}, which is not part of {what}: save into another folder"
        )


def _write_weights(folder: Path, params: dict, slots: Sequence[Slot], shard_bytes: int) -> None:
    groups = _group_by_name(slots)
    files: list[list[str]] = [[]]  # names of the tensors in each file
    file_bytes, total_bytes = 0, 0
    for name, group in groups.items():
        tensor_bytes = sum(get_leaf(params, slot.path).nbytes for slot in group)
        if files[-1] and file_bytes + tensor_bytes > shard_bytes:
            files.append([])
            file_bytes = 0
        files[-1].append(name)
        file_bytes, total_bytes = file_bytes + tensor_bytes, total_bytes + tensor_bytes
    weight_map = {}
    for i, names in enumerate(files):
        number = f"-{i + 1:05d}-of-{len(files):05d}" if len(files) > 1 else ""
        file = f"model{number}.safetensors"
        tensors = {name: _build_tensor(params, groups[name]) for name in names}
        # transformers refuses files without a library name in the metadata.
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def _build_tensor(params: dict, group: Sequence[Slot]) -> np.ndarray:
    """The tensor in Hugging Face's layout that holds the parameters of `group`, in this order."""
    arrays = []
    for slot in group:
        array = np.asarray(jax.device_get(get_leaf(params, slot.path)))
        arrays.append(array.T if slot.transposed else array)
    return np.ascontiguousarray(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])


def _group_by_name(slots: Sequence[Slot]) -> dict[str, list[Slot]]:
    """The parameters in each stored tensor, in the order of their rows."""
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.name, []).append(slot)
    return {
        name: sorted(group, key=lambda slot: slot.rows or (0, 0)) for name, group in groups.items()
    }


def _check_params(params: dict, slots: Sequence[Slot]) -> None:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    expected = {slot.path: slot.shape for slot in slots}
    missing = expected.keys() - leaves.keys()
    problems = [f"missing {path} {list(expected[path])}" for path in missing]
    for path, leaf in leaves.items():
        shape = list(leaf.shape)
        if path not in expected:
            hint = " (fold the adapter into the weights first)" if "/lora_" in path else ""
            problems.append(f"no place for {path} {shape}{hint}")
        elif leaf.shape != expected[path]:
            problems.append(f"{path} has shape {shape}, the config wants {list(expected[path])}")
    if problems:
        raise RagJaxError(f"the parameters do not fit the config: {'; '.join(sorted(problems))}")
