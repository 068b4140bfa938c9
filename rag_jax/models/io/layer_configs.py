"""Which layers of a decoder slide or do not rotate, from the fields of a `config.json`."""

from typing import Any, Literal

from rag_jax.models.io.fields import Fields
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PATTERN = 6  # Gemma 3: every sixth layer is a full one
_INTERVAL = 4  # SmolLM3: every fourth layer has no rotary positions
_FIRST_SLIDING = 28  # Qwen: default of `max_window_layers`

# How a family declares its window: for all layers, for some if `use_sliding_window` is set, for
# some always, or not at all.
Sliding = Literal["all", "if used", "some", "none"]


def read_sliding(
    fields: Fields, kind: Sliding, layers: int, max_length: int, *, window: int | None
) -> tuple[int | None, tuple[int, ...]]:
    """The window of the sliding layers in tokens, and these layers' numbers.

    Args:
        kind: how the family declares windows.
        layers: number of layers.
        window: default of `sliding_window`.

    Raises:
        RagJaxError: the fields contradict each other, or declare what the family does not have.
    """
    listed = _read_types(fields, layers)
    window = fields.raw.get("sliding_window", window)
    if kind == "if used" and fields.raw.get("use_sliding_window") is not True:
        fields.refuse_unless("use_sliding_window", False)
        window = None
    size = None if window is None else fields.size("sliding_window", window)
    if kind == "some":
        pattern = fields.size("sliding_window_pattern", _PATTERN)
        chosen = _choose(listed, [(i + 1) % pattern != 0 for i in range(layers)])
        if chosen and size is None:
            raise RagJaxError(f"{fields.source}: sliding_window is missing: layers slide by it")
        return size, chosen
    chosen = _choose(listed, [])
    if chosen and (kind != "if used" or size is None):
        raise RagJaxError(f"{fields.source}: layer_types {show(_SLIDING)} is not supported")
    if size is None or size >= max_length:  # it covers the whole context
        return None, ()
    if kind == "none":
        raise RagJaxError(
            f"{fields.source}: sliding_window {show(window)} is not supported: it is shorter than "
            f"the context of {max_length} tokens"
        )
    if kind == "all":
        return size, tuple(range(layers))
    if "no_rope_layers" in fields.raw or fields.raw.get("model_type") == "smollm3":
        unrotated = read_unrotated(fields, layers)
        default = [i in unrotated for i in range(layers)]
    else:
        first = fields.size("max_window_layers", _FIRST_SLIDING, least=0)
        default = [i >= first for i in range(layers)]
    chosen = _choose(listed, default)
    return (size, chosen) if chosen else (None, ())


def read_unrotated(fields: Fields, layers: int) -> tuple[int, ...]:
    """The numbers of SmolLM3's layers without rotary positions.

    Raises:
        RagJaxError: `no_rope_layers` is no list with a 0 or 1 for each layer.
    """
    interval = fields.size("no_rope_layer_interval", _INTERVAL)
    listed = fields.raw.get("no_rope_layers")
    if listed is None:
        listed = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or any(x not in (0, 1) for x in listed):
        raise RagJaxError(
            f"{fields.source}: no_rope_layers must be a list of a 0 or 1 for each of the {layers} "
            "layers"
        )
    return tuple(i for i in range(layers) if not listed[i])


def describe_sliding(c: DecoderConfig, kind: Sliding) -> dict[str, Any]:
    """The fields of a `config.json` about windows, which `read_sliding` reads."""
    types = [_SLIDING if layer.slides else _FULL for layer in c.layer_kinds]
    if kind == "some":
        return {"sliding_window": c.window, "layer_types": types}
    if c.window is None:
        return {"sliding_window": None} if c.family == "mistral" else {}
    if kind == "all":
        return {"sliding_window": c.window}
    return {"use_sliding_window": True, "sliding_window": c.window, "layer_types": types}


def _read_types(fields: Fields, layers: int) -> list[str] | None:
    """The field `layer_types`; None if it is missing."""
    listed = fields.raw.get("layer_types")
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise RagJaxError(f"{fields.place('layer_types')} must be a list, not {show(listed)}")
    for kind in listed:
        if kind not in (_FULL, _SLIDING):
            raise RagJaxError(f"{fields.source}: layer_types {show(kind)} is not supported")
    if len(listed) != layers:
        raise RagJaxError(
            f"{fields.source}: layer_types has {len(listed)} entries, num_hidden_layers is {layers}"
        )
    return listed


def _choose(listed: list[str] | None, default: list[bool]) -> tuple[int, ...]:
    """The numbers of the sliding layers."""
    slides = default if listed is None else [kind == _SLIDING for kind in listed]
    return tuple(i for i, yes in enumerate(slides) if yes)
