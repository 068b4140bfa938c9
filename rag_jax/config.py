"""Settings shared by all systems: fields of frozen dataclasses, each with its range in its type.

`to_config_dict` turns the dataclass defaults into the `ConfigDict` that the command line overrides.
`build` turns the `ConfigDict` back into dataclasses and is the one place where settings are
checked. Only `launch/` and a system's `pipeline.run` handle a `ConfigDict`.
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
    """The interval of values that a number may take. NaN and infinities are never in the interval.

    Attributes:
        low: smallest value.
        high: largest value, included.
        open_low: whether `low` itself is excluded.
    """

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
    """The language model.

    Attributes:
        name: a model that `rag_jax.models.load` knows by name, or a folder with its files. The
            default is small enough to train on two CPU cores.
        dtype: type of weights and activations. Trained parameters are kept in float32 in any case,
            because small updates vanish in the 16-bit types.
        vocab_multiple: the vocabulary, new tokens included, is padded to a multiple of this number,
            so that a mesh divides the embedding table. 1 adds no padding.
    """

    name: str = "smollm2-135m-instruct"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vocab_multiple: Count = 1


@dataclass(frozen=True)
class ReaderConfig(ModelConfig):
    """The language model that reads passages.

    Attributes:
        max_text: maximum number of tokens of a passage's text; longer texts are cut.
    """

    max_text: Count = 256


@dataclass(frozen=True)
class MeshConfig:
    """The mesh of devices. The product of both sizes is the number of devices.

    Weights are split over both axes. The default gives every device its part of the batch.

    Attributes:
        data: number of parts that the rows of a batch are split into, or -1 for all devices that
            `model` leaves.
        model: number of parts that each matrix product is split into, or -1 for all devices that
            `data` leaves.
    """

    data: Annotated[int, Range(-1)] = -1
    model: Annotated[int, Range(-1)] = 1

    def check(self, path: str) -> None:
        """Raises a RagJaxError if the two sizes leave the mesh undetermined."""
        if self.data == self.model == -1 or 0 in (self.data, self.model):
            raise RagJaxError(
                f"{path}.data={self.data} and {path}.model={self.model}: set at least one of them "
                "to 1 or more and none to 0; -1 takes the devices that the other leaves"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """The sentence encoder of the index.

    Attributes:
        name: an encoder that `rag_jax.models.load` knows by name, or a folder with its files.
        max_length: maximum number of tokens of a text, special tokens included; longer texts are
            cut.
        batch_size: number of texts of 16 tokens in a batch. Batches of longer texts have fewer
            rows, so that every batch has about as many tokens. 64 texts are 1,024 tokens, where a
            CPU is fastest.
    """

    name: str = "all-minilm-l6-v2"
    max_length: Annotated[int, Range(3)] = 128
    batch_size: Count = 64


@dataclass(frozen=True)
class WorldConfig:
    """The built-in encyclopedia: passages about countries and cities, and questions about them.

    Attributes:
        cities: number of cities with articles.
        countries: number of countries with articles, the most populous first; 0 for all. Cities
            are in these countries.
        train: number of training questions.
        dev: number of development questions.
        test: number of test questions.
        seed: seed of the choice of cities, of the wording and of the questions.
        revision: 0, or 1 for the same world after some countries changed their capital or currency.
        talk_pages: maximum number of talk pages per place. A talk page asks a question and answers
            none, so the passage nearest to a question is of no help.
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
    """The source of passages and questions: the built-in world, or a folder of files.

    Attributes:
        path: folder in one of the formats of `rag_jax/data/formats`; None for the built-in world.
        format: format of the questions. "auto" infers the format from the first record of a file.
        held_out: number of training questions that become the "dev" split, for a folder that has
            no such split.
        longtail: whether to keep only the dev and test questions in PopQA's long tail.
        bad_lines: maximum number of malformed lines that are skipped, each with a warning. One more
            ends the run.
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
        """Raises a RagJaxError if a setting does not fit the source."""
        if self.path is None and self.format not in ("auto", "world"):
            raise RagJaxError(f"{path}.format={self.format!r}: set {path}.path to the data folder")
        if self.path is not None and self.format == "world":
            raise RagJaxError(
                f"{path}.format='world': the world is built in; leave {path}.path unset"
            )
        if self.path is None and self.held_out:
            raise RagJaxError(
                f"{path}.held_out={self.held_out}: the built-in world has a dev split; set it to 0"
            )
        if self.path is None and self.longtail:
            raise RagJaxError(f"{path}.longtail=True: set {path}.path to a folder with PopQA")


@dataclass(frozen=True)
class IndexConfig:
    """The search over the passages' embeddings.

    Attributes:
        backend: "scann" for ScaNN, which is approximate for large corpora and exists for Linux on
            x86-64 only, or "exact" for a matrix product on the devices. See
            `rag_jax.retrieval.Index`.
    """

    backend: Literal["scann", "exact"] = "scann"


@dataclass(frozen=True)
class TrainConfig:
    """One training stage: AdamW with a linear warm-up and a linear decay to zero.

    Attributes:
        epochs: number of passes over the examples; 0 skips the training.
        batch_size: maximum number of examples per optimiser step.
        learning_rate: peak learning rate, after the warm-up.
        warmup_fraction: share of the steps that warm up. At least one step does.
        weight_decay: AdamW's weight decay. Vectors (norm scales, biases) are not decayed.
        clip_norm: gradients with a larger global norm are scaled down to this norm.
        microbatch_tokens: maximum number of tokens, padding included, of one gradient computation,
            unless a single row has more. Gradients are summed over the microbatches of a step,
            which bounds the memory and changes the result by rounding only.
        checkpoint_every: number of steps between two checkpoints.
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
    """The trained part of a language model: all weights, or LoRA adapters on some kernels.

    Attributes:
        mode: "full" trains all weights, "lora" adapters only (Hu et al. 2021). Adapters need far
            less memory for gradients and optimiser moments.
        rank: rank of an adapter. Unused with "full".
        alpha: an adapter's product is multiplied by `alpha / rank`. Unused with "full".
        targets: regular expression for the paths of the adapted kernels. The default matches all
            projections of a layer. Unused with "full".
        remat: activations that the backward pass computes again, to save memory: "none"; "full"
            for all within a layer, or "dots" for all but the results of its projections.
    """

    mode: Literal["full", "lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    targets: str = r"attention/(query|key|value|output)|ffn/(gate|up|down)"
    remat: Literal["none", "full", "dots"] = "none"

    @property
    def scale(self) -> float | None:
        """Factor on an adapter's product, `alpha / rank`; None if all weights are trained."""
        return None if self.mode == "full" else self.alpha / self.rank

    def check(self, path: str) -> None:
        """Raises a RagJaxError if `targets` is no regular expression."""
        try:
            re.compile(self.targets)
        except re.error as error:
            raise RagJaxError(
                f"{path}.targets={self.targets!r}: not a regular expression: {error}"
            ) from error


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """Training of a retriever with in-batch negatives.

    Every question comes with its gold passage and its mined negatives. All passages of the batch
    are negatives of the other questions, so larger batches have better negatives.

    Attributes:
        batch_size: number of questions per step.
        microbatch_tokens: maximum number of tokens that an encoder reads at once. Unlike in
            `TrainConfig`, the loss still spans the whole batch.
        negatives: number of mined negatives per question.
        scale: factor on the scores in the softmax: 20 is usual for cosines, 1 for dot products.
    """

    batch_size: Count = 32
    learning_rate: Positive = 5e-5
    clip_norm: Positive = 2.0
    microbatch_tokens: Count = 2048
    negatives: CountOrZero = 1
    scale: Positive = 20.0


def build(cls: type[T], values: Mapping[str, Any] | Any, *, path: str = "config") -> T:
    """Builds a dataclass and its nested dataclasses from a `ConfigDict` or nested mappings.

    Args:
        cls: the dataclass. Its method `check(path)`, if any, checks fields against each other.
        values: values by field name. A missing field takes the dataclass's default.
        path: name of the dataclass in error messages, such as "config.mesh".

    Raises:
        RagJaxError: naming the field, if a field is unknown, has no value, has a value of the wrong
            type or out of its range, or fails `check`.
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
    """The preset of a config file that has the given name; `""` is the small run.

    Raises:
        RagJaxError: the config file has no such preset.
    """
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
    hint = (
        f"did you mean {path}.{nearest}?"
        if similarity(nearest) >= 0.5
        else f"the fields are {', '.join(known)}"
    )
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
    # type() rather than isinstance(), because a bool is an int in Python but no valid count.
    if type(value) is not hint:
        wanted = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
        raise RagJaxError(f"{path}={value!r}: must be {wanted[hint]}, not {type(value).__name__}")
    return value
