"""Decoder configs from the metadata of a GGUF file, under llama.cpp's names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.models.io.decoder_configs import check_sizes, list_options
from rag_jax.models.io.fields import MOST_LAYERS, Fields
from rag_jax.models.io.gguf_names import ARCHITECTURES, ROPE_DIVISORS
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.rope import LinearScaling, LlamaScaling, RopeScaling, scale_frequencies
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, show

_PATTERN = 6  # Gemma 3: every sixth layer is a full one; llama.cpp writes neither this nor the base
_LOCAL_THETA = 1e4
_LARGEST_GEMMA = 62  # layers of Gemma 3 27B, whose scores are scaled by other than the head's size
_LLAMA_TURNS = {"low_turns": 1.0, "high_turns": 4.0}  # of Llama 3.1, 3.2 and 3.3
_LLAMA_LENGTH = 8192


def read_gguf_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, path: Path
) -> DecoderConfig:
    """The config of the decoder that a GGUF file's metadata describes.

    Without `lm_head.weight` among the tensors, the output head is tied to the embedding.

    Raises:
        RagJaxError: a size is missing, or an option is not supported.
    """
    with parsing(path):
        # Metadata floats are float32: 1e-05 reads as 9.999999747378752e-06.
        rounded = {
            name: float(str(np.float32(value))) if isinstance(value, float) else value
            for name, value in metadata.items()
        }
        architecture = metadata["general.architecture"]
        # Of the architecture's own entries, under their names within it.
        own = f"{architecture}."
        raw = {n.removeprefix(own): value for n, value in rounded.items() if n.startswith(own)}
        return _read(Fields(raw, str(path), prefix=own), tensors, ARCHITECTURES[architecture])


def _read(fields: Fields, tensors: Mapping[str, StoredTensor], family: str) -> DecoderConfig:
    _refuse_options(fields, family)
    embedding = tensors.get("model.embed_tokens.weight")
    hidden, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", hidden // heads)
    fields.refuse_unless("rope.dimension_count", head_dim)
    fields.refuse_unless("attention.value_length", head_dim)
    layers = fields.size("block_count", most=MOST_LAYERS)
    max_length = fields.size("context_length")
    theta = fields.number("rope.freq_base", 10000.0)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", embedding and embedding.shape[0]),
        hidden_size=hidden,
        ffn_size=fields.size("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tie_embeddings="lm_head.weight" not in tensors,
        max_length=max_length,
        family=family,
        rope_scaling=_read_scaling(fields, tensors, head_dim, theta),
        **list_options(family),
        **(_read_gemma(fields, layers, hidden, heads, head_dim) if family == "gemma3_text" else {}),
    )
    name = "attention.sliding_window"
    window = max_length if config.window or not fields.raw.get(name) else fields.size(name)
    if window < max_length:
        raise RagJaxError(f"{fields.place(name)} {window} is not supported")
    return check_sizes(config, fields.source)


def _read_gemma(
    fields: Fields, layers: int, hidden: int, heads: int, head_dim: int
) -> dict[str, Any]:
    pattern = fields.size("attention.sliding_window_pattern", _PATTERN)
    return {
        "window": fields.size("attention.sliding_window"),
        "sliding_layers": tuple(i for i in range(layers) if (i + 1) % pattern),
        "local_rope_theta": fields.number("rope.freq_base_swa", _LOCAL_THETA),
        "query_scalar": hidden // heads if layers == _LARGEST_GEMMA else head_dim,
    }


def _refuse_options(fields: Fields, family: str) -> None:
    """Refuses what changes the result and is not followed, such as scalings of unknown kinds."""
    fields.refuse_unless("expert_count", 0)
    if fields.raw.get("attention.causal") not in (None, True):
        raise RagJaxError(
            f"{fields.place('attention.causal')} false, of an embedder that reads in both "
            "directions, is not followed in GGUF: use the model's Hugging Face folder"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.refuse_unless(name, 0)
    fields.refuse_unless("rope.scaling.type", "none", "linear")
    fields.refuse_unless("rope.scaling.attn_factor", 0, 1)
    known = {"dimension_count", "freq_base", "scale_linear"}
    known |= {"freq_base_swa"} if family == "gemma3_text" else set()
    for name in fields.raw:
        short = name.removeprefix("rope.")
        if short != name and short not in known and not short.startswith("scaling."):
            raise RagJaxError(f"{fields.place(name)} {show(fields.raw[name])} is not supported")


def _read_scaling(
    fields: Fields, tensors: Mapping[str, StoredTensor], head_dim: int, theta: float
) -> RopeScaling | None:
    """The rotary scaling: a linear one among the metadata, or Llama 3's as a tensor of divisors.

    As in llama.cpp, the type is linear where none is given, and the factor may have its old name.
    """
    factor = 1.0
    if fields.raw.get("rope.scaling.type") != "none":
        for name in ("rope.scale_linear", "rope.scaling.factor"):
            if fields.raw.get(name) not in (None, 0):
                factor = fields.number(name)
    linear = None if factor == 1 else LinearScaling(factor)
    stored = tensors.get(ROPE_DIVISORS)
    if stored is None:
        return linear
    divisors = stored.read() if stored.shape == (head_dim // 2,) else np.zeros(1)
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    scaling = None
    if np.isfinite(divisors).all() and (divisors > 0).all() and linear is None:
        length = fields.size("rope.scaling.original_context_length", _LLAMA_LENGTH)
        factor = round(float(divisors.max()), 3)
        scaling = LlamaScaling(factor, **_LLAMA_TURNS, original_length=length)
        wanted = frequencies / scale_frequencies(frequencies, scaling)
        scaling = scaling if np.allclose(divisors, wanted, rtol=1e-3) else None
    if scaling is None:
        raise RagJaxError(f"{fields.source}: {ROPE_DIVISORS} are not the divisors of Llama 3")
    return scaling
