"""GGUF files: metadata, and tensors under Hugging Face's names and in its layout."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float

from rag_jax.models.io.gguf_header import TensorPlace, read_header
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, require_file, show

_DAMAGE = "is truncated or not a GGUF file", "download it again"
_BLOCK = 4096  # rows to dequantise at a time

# From GGUF names to Hugging Face names.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class GgufFile:
    """Contents of a GGUF file of the Llama architecture.

    Attributes:
        metadata: values by their GGUF keys.
        tensors: tensors by Hugging Face name, in Hugging Face's layout.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> GgufFile:
    """Reads the metadata and the tensors' shapes. The data is read later, one tensor at a time.

    Raises:
        RagJaxError: the file is truncated or no GGUF file, or the architecture is not Llama.
    """
    require_file(path)
    with parsing(path, *_DAMAGE):
        metadata, places = read_header(path)
        _check_kind(path, metadata)
        num_heads = metadata.get("llama.attention.head_count")
        rotary_heads = {
            "self_attn.q_proj.weight": num_heads,
            "self_attn.k_proj.weight": metadata.get("llama.attention.head_count_kv", num_heads),
        }
        tensors = {}
        for place in places:
            _check_size(path, place)
            name = _translate_name(place.name)
            heads = next((n for suffix, n in rotary_heads.items() if name.endswith(suffix)), None)
            tensors[name] = StoredTensor(place.shape, partial(_read, path, place, heads))
        return GgufFile(path, metadata, tensors)


def _check_kind(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises a RagJaxError unless a file's metadata are those of a whole model of Llama's kind."""
    if (kind := metadata.get("general.type", "model")) != "model":
        hint = ": load its base model, and convert the adapter to PEFT's format for lora.load_peft"
        raise RagJaxError(
            f"{path} is no model, but of type {show(kind)}{hint * (kind == 'adapter')}"
        )
    if (parts := metadata.get("split.count", 0)) > 1:
        raise RagJaxError(
            f"{path} is one of {parts} parts of a model: join them with `llama-gguf-split --merge "
            "FIRST_PART OUTPUT`"
        )
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise RagJaxError(
            f"{path}: architecture {show(architecture)} is not supported; only llama is"
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


def _translate_name(name: str) -> str:
    """The Hugging Face name; an unknown name stays, for `build_params` to report."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}"
    return _NAMES.get(name, name)


def _read(path: Path, place: TensorPlace, heads: int | None) -> np.ndarray:
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
    return array if heads is None else unpermute(array, heads=heads)


def unpermute(kernel: Float[np.ndarray, "R D"], *, heads: int) -> Float[np.ndarray, "R D"]:
    """The `R = heads * d` output features of a query or key projection in Hugging Face's order.

    GGUF files interleave the two halves of each head's features (`permute` in llama.cpp's
    `convert_hf_to_gguf.py`). Hugging Face stores one half after the other.
    """
    rows, width = kernel.shape
    # [H * d, D] -> [H, d / 2, 2, D] -> [H, 2, d / 2, D] -> [H * d, D]
    pairs = kernel.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
