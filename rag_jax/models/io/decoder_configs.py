"""Decoder configs of every model family from the fields of a `config.json`, and back.

Missing fields have the defaults of the families' configs in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rag_jax.models.io.fields import MOST_LAYERS, SCORED, Fields
from rag_jax.models.io.layer_configs import (
    Sliding,
    describe_sliding,
    read_sliding,
    read_unrotated,
)
from rag_jax.models.io.rope_configs import Rope, describe_rope, read_rope, read_rope_by_layer
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.decoder_config import Activation
from rag_jax.models.nn.rope import LlamaScaling, LongScaling
from rag_jax.runtime.errors import RagJaxError

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class _Family:
    """The class and the config defaults in which a model family differs from the others.

    Attributes:
        architecture: the model class in transformers.
        max_length: default of `max_position_embeddings`, in tokens.
        eps_name: name of the field with the epsilon of the norms.
        sizes: defaults of fields with sizes; without `num_key_value_heads` there are as many as
            query heads.
        tied: default of `tie_word_embeddings`.
        activation: name and only value of the field with the FFN's activation.
        sliding: how the family declares windows.
        window: default of `sliding_window`, in tokens; None for full attention.
        theta: default of `rope_theta`, the full layers' one where they differ.
        local_theta: default of the sliding layers' `rope_theta`; None if all layers rotate alike.
        rotary_fraction: default of `partial_rotary_factor`; None for families without this field,
            which rotate every feature of a head.
        original_length: default of `original_max_position_embeddings`, in tokens, for families with
            this field at the top level; None for families with this field among the rotary
            parameters, where the default is `max_length`.
        options: what the family always sets of `DecoderConfig`.
        refused: further fields that must be missing, null or false.
    """

    architecture: str
    max_length: int
    norm_eps: float = 1e-6
    eps_name: str = "rms_norm_eps"
    sizes: Mapping[str, int] = field(default_factory=dict)
    tied: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    sliding: Sliding = "none"
    window: int | None = None
    theta: float = 10000.0
    local_theta: float | None = None
    rotary_fraction: float | None = None
    original_length: int | None = None
    options: Mapping[str, bool] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


_FAMILIES = {
    "gemma3_text": _Family(
        "Gemma3ForCausalLM",
        131072,
        sizes={
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
        tied=True,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        sliding="some",
        window=4096,
        theta=1e6,
        local_theta=1e4,
        options=dict.fromkeys(
            ("query_key_norm", "output_norms", "offset_norms", "scale_embedding"), True
        ),
        refused=(
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ),
    ),
    "llama": _Family("LlamaForCausalLM", 2048),
    "mistral": _Family(
        "MistralForCausalLM",
        131072,
        sizes={"num_key_value_heads": 8},
        sliding="all",
        window=4096,
    ),
    "phi3": _Family(
        "Phi3ForCausalLM",
        4096,
        norm_eps=1e-5,
        sliding="all",
        rotary_fraction=1.0,
        original_length=4096,
    ),
    "qwen2": _Family(
        "Qwen2ForCausalLM",
        32768,
        sizes={"num_key_value_heads": 32},
        sliding="if used",
        window=4096,
        options={"qkv_bias": True},
    ),
    "qwen3": _Family(
        "Qwen3ForCausalLM",
        32768,
        sizes={"num_key_value_heads": 32, "head_dim": 128},
        sliding="if used",
        window=4096,
        options={"query_key_norm": True},
    ),
    "smollm3": _Family(
        "SmolLM3ForCausalLM",
        32768,
        sizes={"num_key_value_heads": 4},
        tied=True,
        sliding="if used",
        theta=2e6,
    ),
    "stablelm": _Family(
        "StableLmForCausalLM",
        4096,
        norm_eps=1e-5,
        eps_name="layer_norm_eps",
        sizes={"num_key_value_heads": 32},
        rotary_fraction=0.25,
        options={"layer_norm": True},
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
    _refuse_others(fields, family)
    max_length = fields.size("max_position_embeddings", family.max_length)
    sizes = {key: family.sizes.get(key) for key in ("vocab_size", "num_attention_heads")}
    layers = fields.size("num_hidden_layers", most=MOST_LAYERS)
    hidden = fields.size("hidden_size")
    heads = fields.size("num_attention_heads", sizes["num_attention_heads"])
    head_dim = family.sizes.get("head_dim", hidden // heads)
    if name == "stablelm":
        fields.refuse_unless("head_dim", head_dim)
    rope, local_theta = _read_positions(fields, family, head_dim, max_length)
    window, sliding = read_sliding(fields, family.sliding, layers, max_length, window=family.window)
    bidirectional = _counts_both_sides(fields, name)
    if bidirectional and window is not None:
        window = window // 2 + 1  # as transformers has it: the file's counts both sides
    if _is_not_causal(fields):
        if sliding:
            place = fields.place("is_causal")
            raise RagJaxError(f"{place} False is not supported where layers have a sliding window")
        bidirectional = True
    options = list_options(name)
    if name == "stablelm":
        options["qkv_bias"] = fields.raw.get("use_qkv_bias") is True
    scalar = fields.size("query_pre_attn_scalar", 256) if name == "gemma3_text" else None
    # The model class of an encoder has no head, whatever the field says.
    bare = [family.architecture.replace("ForCausalLM", end) for end in ("Model", SCORED)]
    names = fields.raw.get("architectures")
    headless = names in ([name] for name in (*bare, "Gemma3TextModel"))
    config = DecoderConfig(
        vocab_size=fields.size("vocab_size", sizes["vocab_size"]),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=_read_kv_heads(fields, family, heads),
        head_dim=fields.size("head_dim", head_dim),
        rope_theta=rope.theta,
        norm_eps=fields.number(family.eps_name, family.norm_eps),
        tie_embeddings=headless or fields.raw.get("tie_word_embeddings", family.tied) is True,
        max_length=max_length,
        family=name,
        rotary_fraction=rope.fraction,
        rope_scaling=rope.scaling,
        vocab_padding=fields.size("vocab_padding", 0, least=0),
        query_scalar=scalar,
        window=window,
        sliding_layers=sliding,
        local_rope_theta=local_theta,
        unrotated_layers=read_unrotated(fields, layers) if name == "smollm3" else (),
        bidirectional=bidirectional,
        **options,
    )
    return check_sizes(config, fields.source)


def describe_decoder(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a `config.json` that describe a decoder to transformers and `read_decoder`.

    The field `vocab_padding` is present only if there is padding; transformers ignores the field.
    """
    c, family = config, _FAMILIES[config.family]
    nested = family.original_length is None
    activation, value = family.activation
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
        activation: value,
        "max_position_embeddings": c.max_length,
        family.eps_name: c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_parameters": describe_rope(
            c, partial=family.rotary_fraction is not None, original=nested
        ),
        **describe_sliding(c, family.sliding),
    }
    if c.family == "stablelm":
        fields["use_qkv_bias"] = c.qkv_bias
    if c.family == "gemma3_text":
        fields["query_pre_attn_scalar"] = c.query_scalar
    if c.bidirectional and c.family != "gemma3_text":
        fields["is_causal"] = False
    elif c.bidirectional:
        fields["use_bidirectional_attention"] = True
        if c.window is not None:
            fields["sliding_window"] = 2 * (c.window - 1)
    if c.family == "smollm3":
        fields["no_rope_layers"] = [int(kind.rotates) for kind in c.layer_kinds]
    if not nested and isinstance(c.rope_scaling, LlamaScaling | LongScaling):
        fields["original_max_position_embeddings"] = c.rope_scaling.original_length
    if c.vocab_padding:
        fields["vocab_padding"] = c.vocab_padding
    return fields


def list_options(name: str) -> dict[str, Any]:
    """What a family always sets of `DecoderConfig`, whatever the file that describes a model."""
    family = _FAMILIES[name]
    return {**family.options, "activation": _ACTIVATIONS[family.activation[1]]}


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


def _counts_both_sides(fields: Fields, family: str) -> bool:
    """Whether tokens attend to later ones by Gemma 3's own field, as in encoders made of it."""
    if family != "gemma3_text":
        return False
    fields.refuse_unless("use_bidirectional_attention", True, False)
    return bool(fields.raw.get("use_bidirectional_attention"))


def _is_not_causal(fields: Fields) -> bool:
    """Whether tokens attend to later ones by the field of encoders made of any decoder."""
    fields.refuse_unless("is_causal", True, False)
    return not fields.raw.get("is_causal", True)  # transformers takes null for false


def _refuse_others(fields: Fields, family: _Family) -> None:
    """Refuses options that change the result and are not followed."""
    fields.refuse_unless(*family.activation)
    flags = ("attention_bias", "mlp_bias", "use_parallel_residual", "qk_layernorm")
    for flag in (*flags, *family.refused):
        fields.refuse_unless(flag, False)


def _read_kv_heads(fields: Fields, family: _Family, heads: int) -> int:
    """The number of key heads: the query heads' where it is null, the family's where it is not."""
    name = "num_key_value_heads"
    return fields.size(name, heads if name in fields.raw else family.sizes.get(name, heads))


def _read_positions(
    fields: Fields, family: _Family, head_dim: int, max_length: int
) -> tuple[Rope, float | None]:
    """The rotary positions, and the base of the sliding layers' frequencies if it is another."""
    sizes = {"head_dim": head_dim, "max_length": max_length, "theta": family.theta}
    if family.local_theta is not None:
        return read_rope_by_layer(fields, **sizes, local_theta=family.local_theta)
    options = {"fraction": family.rotary_fraction, "original_length": family.original_length}
    return read_rope(fields, **sizes, **options), None
