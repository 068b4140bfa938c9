"""Typed access to the fields of a `config.json` or of GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import LARGEST_SETTINGS, show

# The largest size and id: JAX counts rows and tokens in int32.
LARGEST = 2**31 - 1
# Every layer has its own parameters, so their number is the length of lists.
MOST_LAYERS = 1 << 12
_FLOAT32_MAX = float(np.finfo(np.float32).max)

SCORED = "ForSequenceClassification"  # the end of a classification's name in `architectures`


class Fields:
    """Named values of a config file, read with type checks.

    A field that is null counts as missing. Every error names the file (`source`) and the field,
    whose name there begins with `prefix`.
    """

    def __init__(self, raw: Mapping[str, Any], source: str, *, prefix: str = ""):
        self.raw, self.source, self.prefix = raw, source, prefix

    def place(self, name: str) -> str:
        """The file and the field, as the start of an error."""
        return f"{self.source}: {self.prefix}{name}"

    def size(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = LARGEST
    ) -> int:
        """An integer field; None as `default` makes the field required.

        Raises:
            RagJaxError: a required field is missing, or the value is no integer of `least` or more,
                or is above `most`.
        """
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            kind = "a positive integer" if least == 1 else f"an integer of {least} or more"
            raise RagJaxError(f"{self.place(name)} must be {kind}, not {show(value)}")
        if value > most:
            raise RagJaxError(f"{self.place(name)} must be at most {most}, not {show(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number field above 0 that float32 has; None as `default` makes the field required.

        Raises:
            RagJaxError: a required field is missing, or the value is not such a number.
        """
        value = self.raw.get(name)
        value = default if value is None else value
        if not _is_positive(value):
            raise RagJaxError(f"{self.place(name)} must be a positive number, not {show(value)}")
        return float(value)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A required field with a list of `count` numbers above 0.

        Raises:
            RagJaxError: the value is not a list of `count` numbers above 0.
        """
        value = self.raw.get(name)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_positive, value)):
            raise RagJaxError(f"{self.place(name)} must be a list of {count} positive numbers")
        return tuple(map(float, value))

    def section(self, name: str) -> Mapping[str, Any]:
        """The nested fields under `name`; empty if `name` is missing.

        Raises:
            RagJaxError: the value is not a JSON object.
        """
        value = self.raw.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise RagJaxError(f"{self.place(name)} must be a JSON object, not {show(value)}")
        return value or {}

    def refuse_unless(self, name: str, *allowed: Any) -> None:
        """Checks that a field is missing or has one of the values `allowed`.

        Raises:
            RagJaxError: the field has any other value.
        """
        value = self.raw.get(name)
        if value is not None and value not in allowed:
            raise RagJaxError(f"{self.place(name)} {show(value)} is not supported")


def gives_scores(fields: Fields) -> bool:
    """Whether a `config.json` is of a classification, as rerankers are."""
    names = fields.raw.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(SCORED) for name in names)


def read_fields(path: Path, advice: str = "") -> Fields:
    """The fields of a JSON file.

    Args:
        advice: what to do if the file is missing or damaged.

    Raises:
        RagJaxError: the file is missing, not valid JSON or no JSON object.
    """
    raw = read_json(path, advice=advice, largest=LARGEST_SETTINGS)
    if not isinstance(raw, dict):
        raise RagJaxError(f"{path} must hold a JSON object")
    return Fields(raw, str(path))


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Parameters and activations are float32: above its largest number, one would become infinite.
    return is_number and 0 < value <= _FLOAT32_MAX
