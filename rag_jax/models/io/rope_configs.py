"""Rotary positions from the fields of a `config.json`, and back."""

import math
from typing import Any, NamedTuple

from rag_jax.models.io.fields import Fields
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.rope import LinearScaling, LlamaScaling, LongScaling, RopeScaling
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show

_SECTIONS = ("rope_scaling", "rope_parameters")
_TYPES = ("full_attention", "sliding_attention")


class Rope(NamedTuple):
    """The rotary positions of a decoder.

    Attributes:
        fraction: fraction of each head's features that is rotated.
        theta: base of the frequencies.
        scaling: context extension, or None.
    """

    fraction: float
    theta: float
    scaling: RopeScaling | None


def read_rope(
    fields: Fields,
    *,
    head_dim: int,
    max_length: int,
    fraction: float | None,
    original_length: int | None,
    theta: float,
) -> Rope:
    """The rotary positions of a family whose layers rotate alike.

    Args:
        head_dim: default of the field of this name.
        fraction: default of `partial_rotary_factor`; None for families without this field.
        original_length: default of `original_max_position_embeddings` for families with this field
            at the top level; None for families with this field among the rotary parameters.
        theta: default of `rope_theta`.

    Raises:
        RagJaxError: a field has a value that the decoder does not support.
    """
    # transformers 5 keeps every rotary field in `rope_parameters`. Earlier versions keep the
    # scaling in `rope_scaling` and these two at the top level.
    top_level = {name: fields.raw.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    for name in _SECTIONS:
        if by_layer := [key for key, v in fields.section(name).items() if isinstance(v, dict)]:
            raise RagJaxError(
                f"{fields.source}: {name} by type of layer ({', '.join(by_layer)}) is not supported"
            )
    nested = {key: v for name in _SECTIONS for key, v in fields.section(name).items()}
    rope = Fields({**top_level, **nested}, fields.source)
    base = rope.number("rope_theta", theta)
    if fraction is None:
        rope.refuse_unless("partial_rotary_factor", 1)
    share = rope.number("partial_rotary_factor", fraction or 1.0)
    kind = rope.raw.get("rope_type", rope.raw.get("type", "default"))
    if original_length is not None and kind in ("su", "yarn"):
        kind = "longrope"  # the first Phi-3 checkpoints use these older names
    # As in transformers, the top level takes precedence over the rotary parameters.
    name = "original_max_position_embeddings"
    original = 0
    if kind in ("llama3", "longrope"):
        original = fields.size(name, original_length or rope.size(name, max_length), least=2)
    pairs = int(fields.size("head_dim", head_dim) * share) // 2
    return Rope(share, base, _read_scaling(rope, kind, pairs, max_length, original))


def _read_scaling(
    rope: Fields, kind: Any, pairs: int, max_length: int, original: int
) -> RopeScaling | None:
    if kind == "default":
        rope.refuse_unless("factor", 1)  # whose type is missing
        return None
    if kind == "linear":
        return LinearScaling(rope.number("factor"))
    if kind == "llama3":
        scaling = LlamaScaling(
            factor=rope.number("factor"),
            low_turns=rope.number("low_freq_factor"),
            high_turns=rope.number("high_freq_factor"),
            original_length=original,
        )
        if scaling.low_turns >= scaling.high_turns:
            raise RagJaxError(f"{rope.source}: high_freq_factor must be above low_freq_factor")
        return scaling
    if kind == "longrope":
        factor = rope.number("factor", max_length / original)
        # Ding et al. 2024, in Phi-3's form: longer contexts need sharper attention.
        sharpening = math.sqrt(1 + math.log(max(factor, 1)) / math.log(original))
        return LongScaling(
            short_factors=rope.numbers("short_factor", pairs),
            long_factors=rope.numbers("long_factor", pairs),
            attention_factor=rope.number("attention_factor", sharpening),
            original_length=original,
        )
    raise RagJaxError(
        f"{rope.source}: rope scaling {show(kind)} is not supported; supported are linear, llama3 "
        "and longrope"
    )


def read_rope_by_layer(
    fields: Fields, *, head_dim: int, max_length: int, theta: float, local_theta: float
) -> tuple[Rope, float]:
    """The rotary positions of the full layers, and the base of the sliding layers' frequencies.

    Args:
        head_dim, max_length: as for `read_rope`.
        theta: default of the full layers' `rope_theta`.
        local_theta: default of the sliding layers' one.

    Raises:
        RagJaxError: a field has a value that the decoder does not support.
    """
    by_type = fields.section("rope_parameters")
    if other := next((name for name in by_type if name not in _TYPES), None):
        raise RagJaxError(
            f"{fields.source}: rope_parameters {show(other)} is not supported; supported are those "
            f"of {' and '.join(_TYPES)}"
        )
    full, local = (Fields(by_type, fields.source).section(name) for name in _TYPES)
    # Earlier versions of transformers keep these at the top level.
    older = {"rope_theta": fields.raw.get("rope_theta"), **fields.section("rope_scaling")}
    full = {**{key: value for key, value in older.items() if value is not None}, **full}
    rope = read_rope(
        Fields({"head_dim": fields.raw.get("head_dim"), "rope_parameters": full}, fields.source),
        head_dim=head_dim,
        max_length=max_length,
        fraction=None,
        original_length=None,
        theta=theta,
    )
    local = Fields({"rope_theta": fields.raw.get("rope_local_base_freq"), **local}, fields.source)
    for name in ("rope_type", "type"):
        local.refuse_unless(name, "default")
    local.refuse_unless("partial_rotary_factor", 1)
    return rope, local.number("rope_theta", local_theta)


def describe_rope(c: DecoderConfig, *, partial: bool, original: bool) -> dict[str, Any]:
    """The field `rope_parameters` of a decoder.

    Args:
        partial: whether the family has the field `partial_rotary_factor`.
        original: whether the family has `original_max_position_embeddings` among these fields.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if partial:
        rope["partial_rotary_factor"] = c.rotary_fraction
    if isinstance(c.rope_scaling, LinearScaling):
        rope |= {"rope_type": "linear", "factor": c.rope_scaling.factor}
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
    if original and isinstance(c.rope_scaling, LlamaScaling | LongScaling):
        rope["original_max_position_embeddings"] = c.rope_scaling.original_length
    if c.local_rope_theta is not None:
        local = {"rope_type": "default", "rope_theta": c.local_rope_theta}
        return dict(zip(_TYPES, (rope, local), strict=True))
    return rope
