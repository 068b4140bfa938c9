"""Settings: each declared once, as a field of a frozen dataclass, with its range in its type.

`to_config_dict` turns the dataclass defaults into the `ConfigDict` that the command line overrides;
`build` turns that back into dataclasses and is the one place where settings are checked. Beyond
`launch/` and a system's `pipeline.run`, no code sees a `ConfigDict`.
"""

import dataclasses
import difflib
import math
import re
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
    """The values a number may take, both ends included unless `open_low`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"{'above' if self.open_low else 'from'} {self.low:g} to {self.high:g}"
        return f"{'above' if self.open_low else 'at least'} {self.low:g}"


Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]


@dataclass(frozen=True)
class ModelConfig:
    """The language model: a name `rag_jax.models.load` knows, or a folder.

    Weights and activations are of `dtype`; what is trained is kept in float32 all the same. The
    vocabulary, new tokens included, is padded to a multiple of `vocab_multiple`, so that a mesh
    divides it.
    """

    name: str = "smollm2-135m-instruct"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vocab_multiple: Count = 1


@dataclass(frozen=True)
class ReaderConfig(ModelConfig):
    """The language model; of a passage's text it reads at most `max_text` tokens."""

    max_text: Count = 256


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged: `data` of them split a batch by its rows, `model` each matrix.

    -1 takes all devices that the other leaves; weights are split over both.
    """

    data: Annotated[int, Range(-1)] = -1
    model: Annotated[int, Range(-1)] = 1

    def check(self, path: str) -> None:
        if self.data == self.model == -1 or 0 in (self.data, self.model):
            raise RagJaxError(
                f"{path}.data={self.data} and {path}.model={self.model}: give one of them a size "
                "of at least 1; -1 is for what the other leaves"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder behind the index; `max_length` in tokens."""

    name: str = "all-minilm-l6-v2"
    max_length: Annotated[int, Range(3)] = 128
    batch_size: Count = 64


@dataclass(frozen=True)
class WorldConfig:
    """The built-in encyclopedia: how many cities, of how many countries (the most populous, 0 for
    all), and how many questions in each split.

    `talk_pages` a place ask a question each and answer none: what is nearest does not help.
    """

    cities: Count = 1200
    countries: CountOrZero = 0
    train: Count = 160
    dev: CountOrZero = 200
    test: Count = 300
    seed: CountOrZero = 0
    revision: CountOrZero = 0
    talk_pages: CountOrZero = 0


@dataclass(frozen=True)
class DataConfig:
    """Passages and questions: the built-in world, or the folder `path` in one of the formats of
    `rag_jax/data/formats`.

    `held_out` training questions become the "dev" split where the folder has none; `longtail`
    leaves of the dev and test questions those in PopQA's long tail. So many `bad_lines` are
    skipped, each with a warning; one more ends the run.
    """

    path: str | None = None
    format: Literal[
        "auto",
        "world",
        "arc",
        "beir",
        "dpr",
        "flashrag",
        "jsonl",
        "kilt",
        "multihop",
        "popqa",
        "pubhealth",
        "squad",
        "tfds",
        "triviaqa",
    ] = "auto"
    held_out: CountOrZero = 0
    longtail: bool = False
    bad_lines: CountOrZero = 0

    def check(self, path: str) -> None:
        if self.path is None and self.format not in ("auto", "world"):
            raise RagJaxError(f"{path}.format={self.format!r}: needs {path}.path, a folder")
        if self.path is not None and self.format == "world":
            raise RagJaxError(f"{path}.format='world': is built in; leave {path}.path out")
        if self.path is None and self.held_out:
            raise RagJaxError(
                f"{path}.held_out={self.held_out}: the built-in world has a dev split of its own"
            )
        if self.path is None and self.longtail:
            raise RagJaxError(f"{path}.longtail=True: is PopQA's; needs {path}.path, a folder")


@dataclass(frozen=True)
class IndexConfig:
    """How passages are searched."""

    backend: Literal["scann", "exact"] = "scann"


@dataclass(frozen=True)
class TrainConfig:
    """One training stage: AdamW, a linear warm-up, then a linear decay to zero.

    Gradients are summed over microbatches of at most `microbatch_tokens`, which bounds the memory.
    """

    epochs: CountOrZero = 1
    batch_size: Count = 4
    learning_rate: Positive = 1e-3
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegative = 0.0
    clip_norm: Positive = 1.0
    microbatch_tokens: Count = 128
    checkpoint_every: Count = 10


@dataclass(frozen=True)
class TuningConfig:
    """What of a language model is trained: every weight, or adapters on the kernels whose path
    matches `targets`. `remat` saves memory for time: see `rag_jax.models.nn.decoder.Decoder`."""

    mode: Literal["full", "lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    targets: str = r"attention/(query|key|value|output)|ffn/(gate|up|down)"
    remat: Literal["none", "full", "dots"] = "none"

    @property
    def scale(self) -> float | None:
        """What an adapter's product is multiplied by; None where all weights are trained."""
        return None if self.mode == "full" else self.alpha / self.rank

    def check(self, path: str) -> None:
        try:
            re.compile(self.targets)
        except re.error as error:
            raise RagJaxError(
                f"{path}.targets={self.targets!r}: not a regular expression: {error}"
            ) from error


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """Training of a retriever: `batch_size` questions a step, each with its gold passage and
    `negatives` mined ones, all of which are negatives to the other questions.

    `scale` multiplies the scores in the softmax: 20 is usual for cosines, 1 for dot products.
    Encoders read at most `microbatch_tokens` at once, whatever the batch.
    """

    batch_size: Count = 32
    learning_rate: Positive = 5e-5
    clip_norm: Positive = 2.0
    microbatch_tokens: Count = 2048
    negatives: CountOrZero = 1
    scale: Positive = 20.0


def build(cls: type[T], values: Mapping[str, Any] | Any, *, path: str = "config") -> T:
    """Makes the dataclass `cls`, and those within it, from a `ConfigDict` or nested mappings.

    A field that `values` leaves out takes the dataclass's default.

    Raises:
        RagJaxError: naming the field, for an unknown or missing field, a value of another type or
            out of its range, and for whatever a dataclass's `check(path)` finds across fields.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise RagJaxError(f"{path}={values!r}: must be a group of fields ({cls.__name__})")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise RagJaxError(describe_unknown(str(name), fields, path=path))
    hints = typing.get_type_hints(cls, include_extras=True)
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RagJaxError(f"{path}.{name}: missing")
    built = cls(**made)
    if hasattr(built, "check"):
        built.check(path)
    return built


def choose_preset(presets: Mapping[str, T], name: str) -> T:
    """A config file's settings of that name; `""` are those of the small run.

    Raises:
        RagJaxError: there are none.
    """
    if name not in presets:
        known = ", ".join(filter(None, presets))
        raise RagJaxError(f"config preset {name!r}: must be one of {known}, or left out")
    return presets[name]


def describe_unknown(name: str, known: Iterable[str], *, path: str) -> str:
    """The message for a mistyped field: the nearest known name, or else all of them."""

    def likeness(candidate: str) -> float:
        # First letters are seldom mistyped, and abbreviations (lr) keep little else.
        same_start = 0.3 * (candidate[:1] == name[:1])
        return difflib.SequenceMatcher(None, name, candidate).ratio() + same_start

    known = list(known)
    nearest = max(known, key=likeness, default="")
    hint = (
        f"did you mean {path}.{nearest}?"
        if likeness(nearest) >= 0.5
        else (f"there are {', '.join(known)}")
    )
    shown = name if name.isprintable() else repr(name)
    return f"{path}.{shown}: no such field; {hint}"


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """The `ConfigDict` with a dataclass's values, for a config file to return."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            hints = typing.get_type_hints(type(value))
            items = {name: convert(getattr(value, name)) for name in hints}
            for name in (name for name, item in items.items() if item is None):
                # A None that knows which type may be set in its place.
                (kind,) = set(typing.get_args(hints[name])) - {types.NoneType}
                items[name] = ml_collections.config_dict.placeholder(kind)
            return ml_collections.ConfigDict(items)
        return tuple(convert(v) for v in value) if isinstance(value, tuple) else value

    return convert(settings)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type `hint`, or a RagJaxError that names `path`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _convert(arguments[0], value, path)
        for bound in arguments[1:]:
            if value not in bound:
                raise RagJaxError(f"{path}={value!r}: must be {bound}")
        return value
    if origin is Literal:
        # By type too: True and 1.0 equal 1.
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise RagJaxError(f"{path}={value!r}: must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _convert(inner, value, path)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise RagJaxError(f"{path}={value!r}: must be a list")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, path=path)
    if hint is float and type(value) is int:
        return float(value)
    # type() rather than isinstance(): True is an int to Python, but not to whoever sets a count.
    if type(value) is not hint:
        wanted = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
        raise RagJaxError(f"{path}={value!r}: must be {wanted[hint]}, not {type(value).__name__}")
    return value
