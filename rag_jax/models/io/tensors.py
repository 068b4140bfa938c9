"""Weight files on disk: safetensors, one file or several shards, read one tensor at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from rag_jax.runtime.errors import RagJaxError

_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still on disk: its shape, a function that reads it, and why that would fail."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    fault: str | None = None


def find_weights(folder: Path) -> list[Path]:
    """The weight files of a model folder: safetensors, all its shards, or one GGUF file.

    Raises:
        RagJaxError: there are none, a shard is missing, or several leave the choice open.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _find_shards(index)
    for pattern in ("model.safetensors", "*.safetensors", "*.gguf"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise RagJaxError(f"{folder} holds several weight files ({names}): keep one")
        if found:
            return found
    hint = ""
    if any(folder.glob("*.bin")):
        hint = "; pickled .bin weights are not read: save the model again as safetensors"
    raise RagJaxError(f"no .safetensors or .gguf weights in {folder}{hint}")


def read_safetensors(paths: list[Path]) -> dict[str, StoredTensor]:
    """The tensors of all the files by name, without reading their data yet.

    Raises:
        RagJaxError: a file is truncated or no safetensors file.
    """
    tensors = {}
    for path in paths:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (the handle is no dict)
                part = file.get_slice(name)
                kind = part.get_dtype()
                fault = None if kind in _FLOATS else f"is {kind}; only float weights are read"
                shape = tuple(part.get_shape())
                tensors[name] = StoredTensor(shape, _reader(path, name), fault)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself.

    Raises:
        RagJaxError: the file is truncated or no safetensors file.
    """
    with _open(path) as file:
        return file.metadata() or {}


def _find_shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RagJaxError(f"{index} is no index of weight shards: {error}") from None
    if any(Path(name).name != name for name in names):
        raise RagJaxError(f"{index} names shards outside its folder")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise RagJaxError(
            f"{index.parent} lacks {', '.join(missing)}: copy the missing shards there"
        )
    return [index.parent / name for name in names]


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RagJaxError(
            f"{path} is truncated or no safetensors file ({error}): fetch it again"
        ) from None


def _reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read():
        with _open(path) as file:
            return file.get_tensor(name)

    return read
