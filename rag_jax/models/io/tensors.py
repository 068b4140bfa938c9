"""Tensors on disk: safetensors, in one file or several, read one tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from rag_jax.runtime.errors import RagJaxError

_FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}


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


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RagJaxError(
            f"{path} is truncated or not a safetensors file ({error}): download it again"
        ) from None


def _read(path: Path, name: str) -> np.ndarray:
    with _open(path) as file:
        return file.get_tensor(name)
