"""Decoder configs of every model family from the fields of a `config.json`, and back.

Missing fields have the defaults of the families' configs in transformers.
"""

import math
from dataclasses import dataclass
from typing import Any

from rag_jax.models.io.fields import MOST_LAYERS, Fields
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.rope import LlamaScaling, LongScaling
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show


@dataclass(frozen=True)
class _Family:
    """The class and the config defaults in which a model family differs from the others.

    Attributes:
        architecture: the model class in transformers.
        max_length: default of `max_position_embeddings`, in tokens.
        eps_name: name of the field with the epsilon of the norms.
        kv_heads: default number of key/value heads; None for the number of query heads.
        window: default of `sliding_window`, in tokens; None for full attention.
        rotary_fraction: default of `partial_rotary_factor`; None for families without this field,
            which rotate every feature of a head.
        original_length: default of `original_max_position_embeddings`, in tokens, for families with
            this field at the top level; None for families with this field among the rotary
            parameters, where the default is `max_length`.
    """

    architecture: str
    max_length: int
    norm_eps: float = 1e-6
    eps_name: str = "rms_norm_eps"
    kv_heads: int | None = None
    window: int | None = None
    rotary_fraction: float | None = None
    original_length: int | None = None


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", 2048),
    "mistral": _Family("MistralForCausalLM", 131072, kv_heads=8, window=4096),
    "phi3": _Family(
        "Phi3ForCausalLM", 4096, norm_eps=1e-5, rotary_fraction=1.0, original_length=4096
    ),
    "qwen2": _Family("Qwen2ForCausalLM", 32768, kv_heads=32),
    "stablelm": _Family(
        "StableLmForCausalLM",
        4096,
        norm_eps=1e-5,
        eps_name="layer_norm_eps",
        kv_heads=32,
        rotary_fraction=0.25,
    ),
}
DECODER_FAMILIES = tuple(_FAMILIES)


def read_decoder(fields: Fields) -> DecoderConfig:
    """The config of a decoder from the fields of a `config.json`, by one of `DECODER_FAMILIES`.

    Raises:
        RagJaxError: a field is missing or has a value that the decoder does not support.
    """
    name = fields.raw["model_type"]
    family = _FAMILIES[name]
    max_length = fields.size("max_position_embeddings", family.max_length)
    fields.refuse_unless("hidden_act", "silu")
    for flag in ("attention_bias", "mlp_bias", "use_parallel_residual", "qk_layernorm"):
        fields.refuse_unless(flag, False)
    if name == "qwen2":  # `sliding_window` has no effect here unless `use_sliding_window` is set
        fields.refuse_unless("use_sliding_window", False)
    else:
        _refuse_window(fields, family, max_length)
    for kind in fields.raw.get("layer_types") or ():
        if kind != "full_attention":
            raise RagJaxError(f"{fields.source}: layer_types {show(kind)} is not supported")
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if name == "stablelm":
        fields.refuse_unless("head_dim", hidden // heads)
    fraction, theta, scaling = _read_rope(fields, family, hidden // heads, max_length)
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=fields.size("num_key_value_heads", family.kv_heads or heads),
        head_dim=fields.size("head_dim", hidden // heads),
        rope_theta=theta,
        norm_eps=fields.number(family.eps_name, family.norm_eps),
        tie_embeddings=fields.raw.get("tie_word_embeddings") is True,
        max_length=max_length,
        family=name,
        layer_norm=name == "stablelm",
        qkv_bias=name == "qwen2" or (name == "stablelm" and fields.raw.get("use_qkv_bias") is True),
        rotary_fraction=fraction,
        rope_scaling=scaling,
        vocab_padding=fields.size("vocab_padding", 0, least=0),
    )
    return check_sizes(config, fields.source)


def describe_decoder(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a `config.json` that describe a decoder to transformers and `read_decoder`.

    The field `vocab_padding` is present only if there is padding; transformers ignores the field.
    """
    c, family, rope = config, _FAMILIES[config.family], _describe_rope(config)
    fields = {
        "architectures": [family.architecture],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.ffn_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_length,
        family.eps_name: c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_parameters": rope,
    }
    if c.family == "stablelm":
        fields["use_qkv_bias"] = c.qkv_bias
    if family.window is not None:
        fields["sliding_window"] = None
    if c.rope_scaling is not None:
        # Most families keep the field among the rotary parameters, Phi-3 at the top level.
        section = rope if family.original_length is None else fields
        section["original_max_position_embeddings"] = c.rope_scaling.original_length
    if c.vocab_padding:
        fields["vocab_padding"] = c.vocab_padding
    return fields


def check_sizes(config: DecoderConfig, source: str) -> DecoderConfig:
    """Returns `config`, read from the file `source`, after a check that its sizes are consistent.

    Raises:
        RagJaxError: the sizes contradict each other.
    """
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads:
        raise RagJaxError(
            f"{source}: the number of query heads, {heads}, is not a multiple of the number of "
            f"key/value heads, {kv_heads}"
        )
    if config.rotary_dim % 2 or not 0 < config.rotary_dim <= config.head_dim:
        raise RagJaxError(
            f"{source}: the rotary dimension {config.rotary_dim} must be an even number from 2 to "
            f"the head dimension {config.head_dim}"
        )
    if config.vocab_padding >= config.vocab_size:
        raise RagJaxError(
            f"{source}: vocab_padding {config.vocab_padding} must be below vocab_size "
            f"{config.vocab_size}"
        )
    return config


def _refuse_window(fields: Fields, family: _Family, max_length: int) -> None:
    """Refuses sliding-window attention, unless the window covers the whole context."""
    window = fields.raw.get("sliding_window", family.window)
    if window is not None and fields.size("sliding_window", window) < max_length:
        raise RagJaxError(
            f"{fields.source}: sliding_window {show(window)} is not supported: it is shorter than "
            f"the context of {max_length} tokens"
        )


def _read_rope(
    fields: Fields, family: _Family, head_dim: int, max_length: int
) -> tuple[float, float, LlamaScaling | LongScaling | None]:
    """The rotary fraction of each head, the base frequency, and the scaling."""
    # transformers 5 keeps every rotary field in `rope_parameters`. Earlier versions keep the
    # scaling in `rope_scaling` and these two at the top level.
    top_level = {name: fields.raw.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    sections = ("rope_scaling", "rope_parameters")
    for name in sections:
        if by_layer := [key for key, v in fields.section(name).items() if isinstance(v, dict)]:
            raise RagJaxError(
                f"{fields.source}: {name} by type of layer ({', '.join(by_layer)}) is not supported"
            )
    nested = {key: v for name in sections for key, v in fields.section(name).items()}
    rope = Fields({**top_level, **nested}, fields.source)
    theta = rope.number("rope_theta", 10000.0)
    fraction = rope.number("partial_rotary_factor", family.rotary_fraction or 1.0)
    if family.rotary_fraction is None:
        rope.refuse_unless("partial_rotary_factor", 1)
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if family.original_length is not None and kind in ("su", "yarn"):
        kind = "longrope"  # the first Phi-3 checkpoints use these older names
    if kind == "default":
        rope.refuse_unless("factor", 1)  # whose type is missing
        return fraction, theta, None
    # As in transformers, the top level takes precedence over the rotary parameters.
    name = "original_max_position_embeddings"
    original = family.original_length or rope.size(name, max_length)
    original = fields.size(name, original, least=2)
    if kind == "llama3":
        scaling = LlamaScaling(
            factor=rope.number("factor"),
            low_turns=rope.number("low_freq_factor"),
            high_turns=rope.number("high_freq_factor"),
            original_length=original,
        )
        if scaling.low_turns >= scaling.high_turns:
            raise RagJaxError(f"{rope.source}: high_freq_factor must be above low_freq_factor")
        return fraction, theta, scaling
    if kind == "longrope":
        pairs = int(fields.size("head_dim", head_dim) * fraction) // 2
        factor = rope.number("factor", max_length / original)
        # Ding et al. 2024, in Phi-3's form: longer contexts need sharper attention.
        sharpening = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        scaling = LongScaling(
            short_factors=rope.numbers("short_factor", pairs),
            long_factors=rope.numbers("long_factor", pairs),
            attention_factor=rope.number("attention_factor", sharpening),
            original_length=original,
        )
        return fraction, theta, scaling
    raise RagJaxError(
        f"{fields.source}: rope scaling {show(kind)} is not supported; supported are llama3 and "
        "longrope"
    )


def _describe_rope(c: DecoderConfig) -> dict[str, Any]:
    """The field `rope_parameters` of a decoder, without the original context length."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if _FAMILIES[c.family].rotary_fraction is not None:
        rope["partial_rotary_factor"] = c.rotary_fraction
    if isinstance(c.rope_scaling, LlamaScaling):
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_turns,
            "high_freq_factor": c.rope_scaling.high_turns,
        }
    if isinstance(c.rope_scaling, LongScaling):
        rope |= {
            "rope_type": "longrope",
            "short_factor": list(c.rope_scaling.short_factors),
            "long_factor": list(c.rope_scaling.long_factors),
            "attention_factor": c.rope_scaling.attention_factor,
        }
    return rope
