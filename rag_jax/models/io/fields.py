"""Typed access to the fields of a `config.json` or of GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json


class Fields:
    """Named values of a config file, read with type checks.

    A field that is null counts as missing. Every error names the file (`source`) and the field.
    """

    def __init__(self, raw: Mapping[str, Any], source: str):
        self.raw, self.source = raw, source

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer field; None as `default` makes the field required.

        Raises:
            RagJaxError: a required field is missing, or the value is no integer of `least` or more.
        """
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of {least} or more"
            raise RagJaxError(f"{self.source}: {name} must be {kind}, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number field above 0; None as `default` makes the field required.

        Raises:
            RagJaxError: a required field is missing, or the value is not a number above 0.
        """
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_positive(value):
            raise RagJaxError(f"{self.source}: {name} must be a positive number, not {value!r}")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A required field with a list of `count` numbers above 0.

        Raises:
            RagJaxError: the value is not a list of `count` numbers above 0.
        """
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_positive, value)):
            raise RagJaxError(f"{self.source}: {name} must be a list of {count} positive numbers")
        return tuple(map(float, value))

    def section(self, name: str) -> Mapping[str, Any]:
        """The nested fields under `name`; empty if `name` is missing.

        Raises:
            RagJaxError: the value is not a JSON object.
        """
        value = self.raw.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise RagJaxError(f"{self.source}: {name} must be a JSON object, not {value!r}")
        return value or {}

    def refuse_unless(self, name: str, *allowed: Any) -> None:
        """Checks that a field is missing or has one of the values `allowed`.

        Raises:
            RagJaxError: the field has any other value.
        """
        value = self.raw.get(name)
        if value is not None and value not in allowed:
            raise RagJaxError(f"{self.source}: {name} {value!r} is not supported")


def read_fields(path: Path) -> Fields:
    """The fields of a JSON file; none if the file holds no object.

    Raises:
        RagJaxError: the file is not valid JSON.
    """
    try:
        raw = read_json(path)
    except ValueError as error:
        raise RagJaxError(f"{path} is not valid JSON: {error}") from None
    return Fields(raw if isinstance(raw, dict) else {}, str(path))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
