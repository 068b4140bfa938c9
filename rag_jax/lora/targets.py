"""Which layers a PEFT config adapts: PEFT's rules for `target_modules` and `exclude_modules`."""

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
