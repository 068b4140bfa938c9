"""GGUF files: their metadata and tensors, under the names and in the layout of Hugging Face."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rag_jax.models.io.gguf_header import check_header
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.runtime.errors import RagJaxError

_BLOCK = 4096  # rows

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
    """What a GGUF file of the Llama architecture holds; `metadata` by its keys in the file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> GgufFile:
    """Reads the metadata, and the tensors' shapes; their data follows one tensor at a time.

    Raises:
        RagJaxError: the file is truncated or no GGUF file, or of another architecture.
    """
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the reader meets damage with whatever NumPy happens to raise
        raise RagJaxError(
            f"{path} is truncated or no GGUF file ({error}): fetch it again"
        ) from None
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise RagJaxError(f"{path}: architecture {architecture!r} is not supported; only llama is")
    heads = metadata.get("llama.attention.head_count")
    rotated = {
        "self_attn.q_proj.weight": heads,
        "self_attn.k_proj.weight": metadata.get("llama.attention.head_count_kv", heads),
    }
    tensors = {}
    for tensor in reader.tensors:
        name = _translate_name(tensor.name)
        rotary = next((n for end, n in rotated.items() if name.endswith(end)), None)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        tensors[name] = StoredTensor(shape, _reader(path, tensor, rotary))
    return GgufFile(path, metadata, tensors)


def _translate_name(name: str) -> str:
    """The Hugging Face name; a tensor not known here keeps its own and is reported later."""
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in _LAYER_NAMES:
        return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}"
    return _NAMES.get(name, name)


def _reader(path: Path, tensor: gguf.ReaderTensor, heads: int | None):
    def read():
        # In blocks of rows, for dequantising makes arrays several times the size of its result;
        # and from the file, for what is read of the reader's memory map stays in memory.
        array = np.empty(tuple(int(n) for n in reversed(tensor.shape)), np.float32)
        stored, start = tensor.data, 0
        try:
            with open(path, "rb") as file:
                file.seek(tensor.data_offset)
                while start < len(array):
                    shape = (min(_BLOCK, len(array) - start), *stored.shape[1:])
                    block = np.fromfile(file, stored.dtype, math.prod(shape)).reshape(shape)
                    block = gguf.quants.dequantize(block, tensor.tensor_type)
                    array[start : start + len(block)] = block
                    start += len(block)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise RagJaxError(f"{path}: quantisation {kind} of {tensor.name} is not read") from None
        return array if heads is None else unpermute(array, heads=heads)

    return read


def unpermute(kernel: np.ndarray, *, heads: int) -> np.ndarray:
    """Rows of a query or key projection `[heads * d, D]`, from interleaved to half-split rotary.

    llama.cpp stores the two halves of each head's features in turn (its `convert_hf_to_gguf.py`,
    `permute`); Hugging Face keeps one half after the other.
    """
    rows, width = kernel.shape
    pairs = kernel.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)
