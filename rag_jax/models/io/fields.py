"""Typed access to the fields of a `config.json` or of GGUF metadata."""

from collections.abc import Mapping
from typing import Any

from rag_jax.runtime.errors import RagJaxError


class Fields:
    """Named values; what is missing or no such value is an error that names file and field."""

    def __init__(self, raw: Mapping[str, Any], source: str):
        """Wraps `raw`; `source` is what errors call the file."""
        self.raw, self.source = raw, source

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number, `least` or more."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer from {least}"
            raise RagJaxError(f"{self.source}: {name} must be {kind}, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_positive(value):
            raise RagJaxError(f"{self.source}: {name} must be a positive number, not {value!r}")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many numbers above 0."""
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_positive, value)):
            raise RagJaxError(f"{self.source}: {name} must be a list of {count} positive numbers")
        return tuple(map(float, value))

    def section(self, name: str) -> Mapping[str, Any]:
        """The fields under another one, none if it is left out."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise RagJaxError(f"{self.source}: {name} must be a JSON object, not {value!r}")
        return value or {}

    def refuse_unless(self, name: str, *allowed: Any) -> None:
        """An error unless the field is left out or has one of these values."""
        value = self.raw.get(name)
        if value is not None and value not in allowed:
            raise RagJaxError(f"{self.source}: {name} {value!r} is not supported")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
