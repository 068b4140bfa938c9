"""Model configs from a Hugging Face `config.json` or from GGUF metadata.

Values that may be left out have the defaults of transformers' `LlamaConfig` and `BertConfig`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.errors import RagJaxError
from rag_jax.models.bart import BartConfig
from rag_jax.models.bart_configs import read_bart
from rag_jax.models.bert import BertConfig
from rag_jax.models.decoder import DecoderConfig
from rag_jax.models.fields import Fields
from rag_jax.models.tensors import StoredTensor


def read_config(path: Path) -> DecoderConfig | BertConfig | BartConfig:
    """The config in a `config.json`.

    Raises:
        RagJaxError: the file is missing or damaged, describes another architecture, or asks for
            something these models do not do.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RagJaxError(f"{path} is missing: copy the model's config.json there") from None
    except ValueError as error:
        raise RagJaxError(f"{path} is not valid JSON: {error}") from None
    fields = _Fields(raw if isinstance(raw, dict) else {}, str(path))
    readers = {
        "llama": _read_llama,
        "bert": _read_bert,
        "dpr": _read_dpr,
        "bart": lambda fields: read_bart(Fields(fields.raw, fields.source)),
    }
    model_type = fields.raw.get("model_type")
    if model_type not in readers:
        known = ", ".join(sorted(readers))
        raise RagJaxError(f"{path}: model_type {model_type!r} is not supported; known are {known}")
    fields.refuse_unless("quantization_config", None)
    return readers[model_type](fields)


def read_gguf_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor], *, path: Path
) -> DecoderConfig:
    """The decoder config in a GGUF file's metadata; the head is tied where none is stored.

    Raises:
        RagJaxError: a size is missing, or the rotary positions are scaled or partial.
    """
    fields = _Fields(metadata, str(path))
    fields.refuse_unless("llama.rope.scaling.type", None, "none")
    embedding = tensors.get("model.embed_tokens.weight")
    hidden, heads = fields.size("llama.embedding_length"), fields.size("llama.attention.head_count")
    head_dim = fields.size("llama.attention.key_length", hidden // heads)
    fields.refuse_unless("llama.rope.dimension_count", None, head_dim)
    fields.refuse_unless("llama.attention.value_length", None, head_dim)
    config = DecoderConfig(
        vocab_size=fields.size("llama.vocab_size", embedding and embedding.shape[0]),
        hidden_size=hidden,
        ffn_size=fields.size("llama.feed_forward_length"),
        num_layers=fields.size("llama.block_count"),
        num_heads=heads,
        num_kv_heads=fields.size("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=fields.number("llama.rope.freq_base", 10000.0),
        norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="lm_head.weight" not in tensors,
        max_length=fields.size("llama.context_length"),
    )
    return _check_heads(config, fields)


def _read_llama(fields: "_Fields") -> DecoderConfig:
    fields.refuse_unless("hidden_act", None, "silu")
    fields.refuse_unless("attention_bias", None, False)
    fields.refuse_unless("mlp_bias", None, False)
    fields.refuse_unless("sliding_window", None)
    # transformers 5 keeps the base in `rope_parameters`, earlier versions beside `rope_scaling`.
    rope = {**(fields.raw.get("rope_scaling") or {}), **(fields.raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise RagJaxError(f"{fields.source}: rope scaling {kind!r} is not supported")
    base = _Fields({"rope_theta": fields.raw.get("rope_theta"), **rope}, fields.source)
    base.refuse_unless("partial_rotary_factor", None, 1)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", hidden // heads),
        rope_theta=base.number("rope_theta", 10000.0),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tie_embeddings=fields.raw.get("tie_word_embeddings") is True,
        max_length=fields.size("max_position_embeddings", 2048),
    )
    return _check_heads(config, fields)


def _check_heads(config: DecoderConfig, fields: "_Fields") -> DecoderConfig:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads or config.head_dim % 2:
        raise RagJaxError(
            f"{fields.source}: {heads} query heads and {kv_heads} key heads of {config.head_dim} "
            "features do not fit together"
        )
    return config


def _read_bert(fields: "_Fields") -> BertConfig:
    fields.refuse_unless("hidden_act", None, "gelu")
    fields.refuse_unless("position_embedding_type", None, "absolute")
    fields.refuse_unless("is_decoder", None, False)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden % heads:
        raise RagJaxError(f"{fields.source}: hidden_size {hidden} is no multiple of {heads} heads")
    return BertConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_types=fields.size("type_vocab_size", 2),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        max_length=fields.size("max_position_embeddings", 512),
    )


def _read_dpr(fields: "_Fields") -> BertConfig:
    architectures = fields.raw.get("architectures")
    roles = {"DPRQuestionEncoder": "question", "DPRContextEncoder": "context"}
    role = next((role for name, role in roles.items() if architectures == [name]), None)
    if role is None:
        raise RagJaxError(
            f"{fields.source}: architectures {architectures!r} is not supported; of DPR's models "
            f"{' and '.join(roles)} are"
        )
    projection = fields.size("projection_dim") if fields.raw.get("projection_dim") else None
    return replace(_read_bert(fields), dpr_role=role, projection_size=projection)


class _Fields:
    """Typed access to a config's fields, with errors that name the file and the field."""

    def __init__(self, raw: Mapping[str, Any], source: str):
        self.raw, self.source = raw, source

    def size(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RagJaxError(f"{self.source}: {name} must be a positive integer, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or not value > 0:
            raise RagJaxError(f"{self.source}: {name} must be a positive number, not {value!r}")
        # GGUF keeps float32: 9.999999747378752e-06 is its 1e-05.
        return float(str(np.float32(value)))

    def refuse_unless(self, name: str, *allowed: Any) -> None:
        value = self.raw.get(name)
        if value not in allowed:
            raise RagJaxError(f"{self.source}: {name} {value!r} is not supported")
