"""Settings of a comparison: what all systems share, once, and the rest of each system's own."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from rag_jax.config import (
    CountOrZero,
    DataConfig,
    EncoderConfig,
    MeshConfig,
    ModelConfig,
    Seed,
    TrackerName,
    WorldConfig,
    build,
    to_config_dict,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.srrag.config import SRRAGConfig

# The systems that answer questions.
SYSTEMS = ("srrag", "rag", "self_retrieval", "prag")
# Where each system has the settings of the language model and of the encoder.
_MODELS = {"srrag": "model", "rag": "generator", "self_retrieval": "model", "prag": "model"}
_ENCODERS = {
    "srrag": "encoder",
    "rag": "retriever",
    "self_retrieval": "dense.encoder",
    "prag": "retrieve.encoder",
}
# The settings by which a system would take a part of the questions, that are chosen already.
_COUNTS = {
    "srrag": {"questions": "questions", "train_questions": "train_questions"},
    "rag": {"decode.questions": "questions", "train.questions": "train_questions"},
    "self_retrieval": {},
    "prag": {"questions": "questions"},
}
_WHOLE = ("seed", "evaluate_on", "track", "mesh", "data", "world")


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of systems on one corpus, with the same questions and the same models.

    Attributes:
        systems: the systems that are compared, in the order of their runs.
        reference: the row that all others are compared with, such as "rag.thorough"; None for the
            first row.
        evaluate_on: the questions that are asked.
        questions: maximum number of questions that are asked; 0 for all.
        train_questions: maximum number of questions that are trained on; 0 for all.
        track: where the curves of each system's run go besides the run's own files.
    """

    system: Literal["compare"] = "compare"
    systems: tuple[Literal["srrag", "rag", "self_retrieval", "prag"], ...] = SYSTEMS
    reference: str | None = None
    seed: Seed = 0
    evaluate_on: Literal["test", "dev"] = "test"
    questions: CountOrZero = 40
    train_questions: CountOrZero = 40
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    model: ModelConfig = ModelConfig()
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(cities=16, countries=24, train=40, dev=20, test=40)
    srrag: SRRAGConfig = SRRAGConfig()
    rag: RAGConfig = RAGConfig()
    self_retrieval: SelfRetrievalConfig = SelfRetrievalConfig()
    prag: PRAGConfig = PRAGConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError if there is no system, or one of them twice."""
        if not self.systems or len({*self.systems}) < len(self.systems):
            listed = ", ".join(self.systems) or "none"
            raise RagJaxError(
                f"{path}.systems: must be one or more of {', '.join(SYSTEMS)}, each once, but is "
                f"{listed}"
            )

    def settings(self, system: str, data: Path) -> Any:
        """A system's whole settings, on prepared data.

        Args:
            data: the folder of passages and chosen questions.
        """
        settings = getattr(self, system)
        for own, path in list_shared(system).items():
            value = 0 if path in ("questions", "train_questions") else _get(self, path)
            settings = _replace(settings, own, value)
        return dataclasses.replace(settings, data=DataConfig(path=str(data.absolute())))


def list_shared(system: str) -> dict[str, str]:
    """The settings of a system that all systems share: paths in the comparison by their own."""
    paths = {name: name for name in ("system", *_WHOLE)} | _COUNTS[system]
    del paths["system"]
    for group, kind in ((_MODELS, ModelConfig), (_ENCODERS, EncoderConfig)):
        shared = "model" if group is _MODELS else "encoder"
        for field in dataclasses.fields(kind):
            paths[f"{group[system]}.{field.name}"] = f"{shared}.{field.name}"
    return paths


def to_shared_dict(config: CompareConfig) -> ConfigDict:
    """The settings as a `ConfigDict`, in which those that systems share are there once."""
    values = to_config_dict(config)
    for path in list_hidden():
        *groups, name = path.split(".")
        group = values
        for step in groups:
            group = group[step]
        del group[name]
        if not len(group):
            _drop(values, groups)
    return values


def read_config(values: ConfigDict) -> CompareConfig:
    """The settings of a comparison from a `ConfigDict`.

    Raises:
        RagJaxError: a value that is not allowed, or that a system has beside the shared one.
    """
    for path, shared in list_hidden().items():
        group: Any = values
        for step in path.split("."):
            group = group[step] if isinstance(group, ConfigDict) and step in group else None
        if group is not None:
            raise RagJaxError(f"config.{path}: all systems share it; set config.{shared}")
    return build(CompareConfig, values)


def list_changes(before: Mapping[str, Any], config: CompareConfig) -> Iterator[str]:
    """The settings of a finished comparison that differ from these: those that runs depend on.

    Args:
        before: as `to_plain` gives them.
    """
    old, new = (dict(_list_leaves(values)) for values in (before, to_plain(config)))
    for path in old:
        free = path in ("systems", "reference", "track", "data.path") or path not in new
        if not free and old[path] != new[path]:
            yield f"config.{path}: {old[path]} -> {new[path]}"


def to_plain(config: CompareConfig) -> dict[str, Any]:
    """The settings as JSON values, for a report."""
    return _list_plain(to_shared_dict(config))


def _list_plain(value: Any) -> Any:
    if isinstance(value, ConfigDict):
        return {name: _list_plain(value[name]) for name in value}
    return [_list_plain(item) for item in value] if isinstance(value, tuple) else value


def _list_leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _list_leaves(value, f"{path}.{name}" if path else name)
    else:
        yield path, values


def list_hidden() -> dict[str, str]:
    """Paths of the settings that the systems' groups do not have, and of the shared ones."""
    hidden = {}
    for system in SYSTEMS:
        hidden[f"{system}.system"] = "systems"
        hidden |= {f"{system}.{own}": path for own, path in list_shared(system).items()}
    return hidden


def _get(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _replace(settings: Any, path: str, value: Any) -> Any:
    """Frozen settings with another value at a path."""
    name, _, rest = path.partition(".")
    inner = _replace(getattr(settings, name), rest, value) if rest else value
    return dataclasses.replace(settings, **{name: inner})


def _drop(values: ConfigDict, groups: list[str]) -> None:
    """Removes a group that has no fields left, such as `srrag.encoder`."""
    parent: Any = values
    for step in groups[:-1]:
        parent = parent[step]
    del parent[groups[-1]]
    if groups[:-1] and not len(parent):
        _drop(values, groups[:-1])
