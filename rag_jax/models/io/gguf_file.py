"""GGUF files: metadata, and tensors under Hugging Face's names and in its layout."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float

from rag_jax.models.io.gguf_header import TensorPlace, read_header
from rag_jax.models.io.gguf_names import (
    ARCHITECTURES,
    is_interleaved,
    is_offset,
    translate_name,
)
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, require_file, show

_DAMAGE = "is truncated or not a GGUF file", "download it again"
_BLOCK = 4096  # rows to dequantise at a time


@dataclass(frozen=True)
class GgufFile:
    """Contents of a GGUF file, or of the files that a model is split into.

    Attributes:
        metadata: values by their GGUF keys.
        tensors: tensors by Hugging Face name, in Hugging Face's layout.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path, others: Sequence[Path] = ()) -> GgufFile:
    """Reads the metadata and the tensors' shapes. The data is read later, one tensor at a time.

    Args:
        path: the file, or the first of several that a model is split into.
        others: the further parts of a model in several files, in order.

    Raises:
        RagJaxError: a file is truncated or no GGUF file, the architecture is not supported, or the
            files are not the parts of one model.
    """
    metadata, tensors, architecture = {}, {}, ""
    for i, part in enumerate((path, *others)):
        require_file(part)
        with parsing(part, *_DAMAGE):
            own, places = read_header(part)
            _check_part(part, own, i, 1 + len(others))
            if i == 0:
                metadata, architecture = own, _check_kind(path, own)
            for place in places:
                _check_size(part, place)
                name = translate_name(place.name, architecture)
                if name in tensors:
                    raise ValueError(f"{place.name} comes twice")
                read = partial(_read_weight, part, place, name, metadata)
                tensors[name] = StoredTensor(place.shape, read)
    count = metadata.get("split.tensors.count", len(tensors))
    if others and count != len(tensors):
        raise RagJaxError(
            f"{path}: the {1 + len(others)} parts have {len(tensors)} tensors, not {show(count)}: "
            "download them again"
        )
    return GgufFile(path, metadata, tensors)


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> str:
    """The architecture, after a check that a file's metadata are those of a whole model."""
    if (kind := metadata.get("general.type", "model")) != "model":
        hint = ": load its base model, and convert the adapter to PEFT's format for lora.load_peft"
        raise RagJaxError(
            f"{path} is no model, but of type {show(kind)}{hint * (kind == 'adapter')}"
        )
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise RagJaxError(
            f"{path}: architecture {show(architecture)} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return architecture


def _check_part(path: Path, metadata: Mapping[str, Any], number: int, parts: int) -> None:
    """Raises a RagJaxError unless a file is the part of a model that its name says."""
    count, own = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if max(count, 1) != parts or own != number:
        raise RagJaxError(
            f"{path} is part {show(own)} (from 0) of {show(count)} of a model, read as part "
            f"{number} of {parts}: name the parts NAME-00001-of-0000N.gguf, in their order"
        )


def _check_size(path: Path, place: TensorPlace) -> None:
    """Raises a ValueError if a tensor's data is not all there, or its rows are not whole blocks."""
    kind, width = _measure_row(place)
    if place.shape and place.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        raise ValueError(f"{place.name} has rows of {place.shape[-1]} weights as {kind.name}")
    if place.offset + math.prod(place.shape[:-1]) * width > path.stat().st_size:
        raise ValueError(f"{place.name} runs past the end of the file")


def _measure_row(place: TensorPlace) -> tuple[gguf.GGMLQuantizationType, int]:
    """How a tensor is quantised, and the bytes of a row of its last axis."""
    kind = gguf.GGMLQuantizationType(place.kind)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    return kind, (place.shape[-1] if place.shape else 1) // weights * size


def _read_weight(
    path: Path, place: TensorPlace, name: str, metadata: Mapping[str, Any]
) -> np.ndarray:
    """A tensor's weights as Hugging Face stores them."""
    array, architecture = _read(path, place), metadata["general.architecture"]
    if is_offset(name, architecture):
        array -= 1
    if is_interleaved(name, architecture):
        heads = metadata.get("llama.attention.head_count")
        if "k_proj" in name:
            heads = metadata.get("llama.attention.head_count_kv", heads)
        with parsing(path, *_DAMAGE):
            return unpermute(array, heads=heads)
    return array


def _read(path: Path, place: TensorPlace) -> np.ndarray:
    # In blocks of rows, because dequantising needs several times the memory of its result.
    # From the file, because pages that are read through a memory map stay in memory.
    array = np.empty(place.shape, np.float32)
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    with parsing(path, *_DAMAGE), open(path, "rb") as file:
        kind, width = _measure_row(place)
        file.seek(place.offset)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            stored = np.fromfile(file, np.uint8, len(block) * width).reshape(len(block), width)
            try:
                block[:] = gguf.quants.dequantize(stored, kind)
            except NotImplementedError:
                raise RagJaxError(
                    f"{path}: quantisation {kind.name} of {place.name} is not supported"
                ) from None
    return array


def unpermute(kernel: Float[np.ndarray, "R D"], *, heads: int) -> Float[np.ndarray, "R D"]:
    """The `R = heads * d` output features of a query or key projection in Hugging Face's order.

    GGUF files interleave the two halves of each head's features (`permute` in llama.cpp's
    `convert_hf_to_gguf.py`). Hugging Face stores one half after the other.
    """
    rows, width = kernel.shape
    # [H * d, D] -> [H, d / 2, 2, D] -> [H, 2, d / 2, D] -> [H * d, D]
    pairs = kernel.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
