"""Which layers a PEFT config adapts: PEFT's rules for `target_modules` and `exclude_modules`."""

import math
import re
from collections.abc import Callable

from rag_jax.models.io.fields import Fields
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show
from rag_jax.runtime.patterns import MatchTime, NamePattern


def read_targets(fields: Fields) -> Callable[[str], bool]:
    """A function that says of a layer's Hugging Face name whether the config adapts the layer.

    Raises:
        RagJaxError: a field is of another type or no regular expression; or, when the function is
            called, the regular expressions take too long.
    """
    layers = fields.raw.get("layers_to_transform")
    if layers is not None:
        layers = [layers] if isinstance(layers, int) else _list(fields, "layers_to_transform", int)
        layers = {*layers} or None  # PEFT takes an empty list for all layers
    number = re.compile(rf"(?:^|\.){_read_place(fields)}\.(\d+)\.")
    time = MatchTime()
    chosen, excluded = (
        _read_rule(fields, name, time) for name in ("target_modules", "exclude_modules")
    )

    def is_target(module: str) -> bool:
        if layers is not None:
            found = number.search(module)
            if found is None or int(found[1]) not in layers:
                return False
        return chosen(module) and not excluded(module)

    return is_target


def read_ranks(fields: Fields) -> Callable[[str], tuple[int, float]]:
    """A function from a layer's Hugging Face name to the layer's rank and `alpha`.

    They are those of the first pattern in `rank_pattern` and in `alpha_pattern` that the name, or
    its last parts, match, or else `r` and `lora_alpha`.

    Raises:
        RagJaxError: as `read_targets`, or a rank or an `alpha` is no positive number.
    """
    time = MatchTime()
    defaults = {"rank_pattern": fields.size("r"), "alpha_pattern": fields.number("lora_alpha")}
    rules = {name: _read_patterns(fields, name, time) for name in defaults}

    def find_rank(module: str) -> tuple[int, float]:
        rank, alpha = (
            next((value for pattern, value in rules[name] if pattern.fullmatch(module)), default)
            for name, default in defaults.items()
        )
        return rank, alpha

    return find_rank


def _read_patterns(
    fields: Fields, name: str, time: MatchTime
) -> list[tuple[NamePattern, int | float]]:
    found, source = fields.raw.get(name) or {}, f"{fields.source}: {name}"
    kind = int if name == "rank_pattern" else int | float
    values = found.values() if isinstance(found, dict) else [None]
    if any(isinstance(x, bool) or not isinstance(x, kind) or not 0 < x < math.inf for x in values):
        raise RagJaxError(f"{source} must give positive numbers by name, not {show(found)}")
    return [
        (NamePattern(rf"(.*\.)?({pattern})", source=source, time=time), value)
        for pattern, value in found.items()
    ]


def _read_place(fields: Fields) -> str:
    """A pattern of what stands before a layer's number in names; anything by default."""
    names = fields.raw.get("layers_pattern")
    names = [names] if isinstance(names, str) and names else _list(fields, "layers_pattern", str)
    if not all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise RagJaxError(f"{fields.source}: layers_pattern {show(names)} is not supported")
    return f"(?:{'|'.join(map(re.escape, names))})" if names else r"[^.]+"


def _read_rule(fields: Fields, name: str, time: MatchTime) -> Callable[[str], bool]:
    """PEFT's rule: a regular expression for the whole name, or a list of names or last parts."""
    pattern = fields.raw.get(name)
    if isinstance(pattern, str):
        return NamePattern(pattern, source=f"{fields.source}: {name}", time=time).fullmatch
    items = {*_list(fields, name, str)}

    def is_listed(module: str) -> bool:
        parts = module.split(".")
        return any(".".join(parts[start:]) in items for start in range(len(parts)))

    return is_listed


def _list(fields: Fields, name: str, kind: type) -> list:
    value = fields.raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise RagJaxError(
            f"{fields.source}: {name} must be a list of {kind.__name__}s, not {show(value)}"
        )
    return value
