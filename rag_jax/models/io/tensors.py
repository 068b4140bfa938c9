"""Tensors on disk: safetensors, in one file or several, read one tensor at a time."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.numpy import finfo
from safetensors import safe_open

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, require_file

_FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}
_BLOCK = 1 << 18  # numbers that are checked at a time; they stay in the processor's cache
_HEADER = 16 << 20  # bytes; a hundred thousand tensors have no more
_DAMAGE = "is truncated or not a safetensors file", "download it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, read on demand.

    Attributes:
        fault: why the tensor cannot be a weight, as the end of a sentence that starts with the
            tensor's name; None if it can.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    fault: str | None = None


def read_safetensors(paths: list[Path]) -> dict[str, StoredTensor]:
    """The tensors of several safetensors files by name, without their data.

    Tensors that are not float have a `fault`.

    Raises:
        RagJaxError: a file is truncated or not a safetensors file.
    """
    tensors = {}
    for path in paths:
        with _open(path) as file:
            for name in file.keys():  # noqa: SIM118 (the handle is not a dict)
                header = file.get_slice(name)
                dtype, shape = header.get_dtype(), tuple(header.get_shape())
                fault = f"is {dtype}; only float weights are read"
                fault = None if dtype in _FLOAT_TYPES else fault
                tensors[name] = StoredTensor(shape, partial(_read, path, name), fault)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; a RagJaxError if the file is damaged."""
    with _open(path) as file:
        return file.metadata() or {}


def check_finite(array: np.ndarray, dtype: Any, name: str) -> None:
    """Looks for NaN and infinities, in blocks, with no copy of a whole tensor.

    Args:
        array: floats of any kind.
        dtype: kind of float that the tensor is about to become, in which a number may overflow.
        name: of the tensor and its file, for the message.

    Raises:
        RagJaxError: a number is NaN or infinite, or would be as `dtype`.
    """
    flat, dtype = array.reshape(-1), np.dtype(dtype)
    narrows = finfo(dtype).max < finfo(array.dtype).max
    kind = dtype if narrows else array.dtype
    # Infinities and NaN are the numbers with all bits of the exponent.
    bits = np.dtype(f"u{kind.itemsize}")
    exponent = np.asarray(np.inf, kind).view(bits)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if narrows:
            with np.errstate(over="ignore"):
                block = block.astype(kind)
        if ((block.view(bits) & exponent) == exponent).any():
            raise RagJaxError(
                f"{name} has a NaN, or a number beyond {kind.name}: the file is damaged, or its "
                "training diverged"
            )


def _read(path: Path, name: str) -> np.ndarray:
    with _open(path) as file:
        return file.get_tensor(name)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a safetensors file; a RagJaxError if it is damaged, or becomes so in the block."""
    require_file(path)
    with parsing(path, *_DAMAGE):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _HEADER:
            raise ValueError(f"its header has {size:,} bytes, the limit is {_HEADER:,}")
        with safe_open(path, framework="numpy") as opened:
            yield opened
