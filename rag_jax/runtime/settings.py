"""Settings as frozen dataclasses: ranges of numbers, checks, and conversion from a `ConfigDict`.

`to_config_dict` turns the dataclass defaults into the `ConfigDict` that the command line overrides.
`build` turns the `ConfigDict` back into dataclasses and is the one place where settings are
checked. Only `launch/` and a system's `pipeline.run` handle a `ConfigDict`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import ml_collections

from rag_jax.runtime.errors import RagJaxError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The interval of values that a number may take. NaN and infinities are never in the interval.

    `high` is included, and so is `low` unless `open_low`.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isfinite(self.high):
            high = self.high if isinstance(self.high, int) else f"{self.high:g}"
            return f"{'above' if self.open_low else 'from'} {self.low:g} to {high}"
        return f"{'above' if self.open_low else 'at least'} {self.low:g}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
LARGEST_SEED = (1 << 32) - 1  # what a key of JAX is made of
Seed = Annotated[int, Range(0, LARGEST_SEED)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices. The product of both sizes is the number of devices.

    The default gives every device its part of the batch.

    Attributes:
        data: number of parts of a batch's rows, or -1 for all devices that `model` leaves.
        model: number of parts of a matrix product, or -1 for all devices that `data` leaves.
        weights: how weights lie that are not being trained. "split" over both axes takes the least
            memory, and every pass collects them from all of `data`. Split over "model" alone, they
            stay where they are, which is much for each token that is decoded; a device then holds
            one of `model` parts. What is trained is split over both.
    """

    data: Annotated[int, Range(-1)] = -1
    model: Annotated[int, Range(-1)] = 1
    weights: Literal["split", "model"] = "split"

    def check(self, path: str) -> None:
        """Raises a RagJaxError if the two sizes leave the mesh undetermined."""
        if self.data == self.model == -1 or 0 in (self.data, self.model):
            raise RagJaxError(
                f"{path}.data={self.data} and {path}.model={self.model}: set at least one of them "
                "to 1 or more and none to 0; -1 takes the devices that the other leaves"
            )


def build(cls: type[T], values: Mapping[str, Any] | Any, *, path: str = "config") -> T:
    """Builds a dataclass and its nested dataclasses from a `ConfigDict` or nested mappings.

    Args:
        cls: the dataclass. Its method `check(path)`, if any, checks fields against each other.
        values: values by field name. A missing field takes the dataclass's default.
        path: name of the dataclass in error messages, such as "config.mesh".

    Raises:
        RagJaxError: naming the field that is unknown, missing, of a wrong type or value.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise RagJaxError(f"{path}={values!r}: must be a group of fields ({cls.__name__})")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise RagJaxError(describe_unknown(str(name), fields, path=path))
    hints = typing.get_type_hints(cls, include_extras=True)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RagJaxError(f"{path}.{name}: missing")
    built = cls(**arguments)
    if hasattr(built, "check"):
        built.check(path)
    return built


def choose_preset(presets: Mapping[str, T], name: str) -> T:
    """The named preset of a config file; `""` is the small run, an unknown name a RagJaxError."""
    if name not in presets:
        known = ", ".join(filter(None, presets))
        raise RagJaxError(f"config preset {name!r}: must be one of {known}, or left out")
    return presets[name]


def describe_unknown(name: str, known: Iterable[str], *, path: str) -> str:
    """The error message for a mistyped field, with the nearest known name or else all names."""

    def similarity(candidate: str) -> float:
        # First letters are seldom mistyped, and abbreviations (lr) keep little else.
        same_start = 0.3 * (candidate[:1] == name[:1])
        return difflib.SequenceMatcher(None, name, candidate).ratio() + same_start

    known = list(known)
    nearest = max(known, key=similarity, default="")
    hint = f"did you mean {path}.{nearest}?"
    if similarity(nearest) < 0.5:
        hint = f"the fields are {', '.join(known)}"
    shown = name if name.isprintable() else repr(name)
    return f"{path}.{shown}: no such field; {hint}"


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """A dataclass's values as a `ConfigDict`, for a config file to return."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            hints = typing.get_type_hints(type(value))
            items = {name: convert(getattr(value, name)) for name in hints}
            for name in (name for name, item in items.items() if item is None):
                # A placeholder is None, but knows the type of the value that may replace None.
                (kind,) = set(typing.get_args(hints[name])) - {types.NoneType}
                items[name] = ml_collections.config_dict.placeholder(kind)
            return ml_collections.ConfigDict(items)
        return tuple(convert(v) for v in value) if isinstance(value, tuple) else value

    return convert(settings)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """Converts `value` to the annotated type `hint`, or raises a RagJaxError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(arguments[0], value, path)
        for bound in arguments[1:]:
            if value not in bound:
                raise RagJaxError(f"{path}={value!r}: must be {bound}")
        return value
    if origin is Literal:
        # Compares types too, because True and 1.0 equal 1.
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise RagJaxError(f"{path}={value!r}: must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value in (None, "None"):  # the command line gives a text
            return None
        (inner,) = set(arguments) - {types.NoneType}
        return _convert(inner, value, path)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise RagJaxError(f"{path}={value!r}: must be a list")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path=path)
    if hint is float and type(value) is int:
        return float(value)
    # type() rather than isinstance(), because a bool is an int in Python but no valid count.
    if type(value) is not hint:
        wanted = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
        raise RagJaxError(f"{path}={value!r}: must be {wanted[hint]}, not {type(value).__name__}")
    return value
