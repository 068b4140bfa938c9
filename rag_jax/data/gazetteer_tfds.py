"""The built-in world on disk: ArrayRecord files by TensorFlow Datasets, read by random access.

TensorFlow itself is not needed, nor imported. The settings, the version of the facts and the
source of the sentences are part of a world's folder name, so two worlds never share files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rag_jax.data import gazetteer
from rag_jax.data.gazetteer import Passage, Question, World, places

_SPLITS = ("train", "dev", "test")


@dataclass
class GazetteerConfig(tfds.core.BuilderConfig):
    """The settings of `build_world`, and which of its two tables this is."""

    table: str = "passages"  # or "questions"
    settings: dict[str, int] = dataclasses.field(default_factory=dict)


class Gazetteer(tfds.core.GeneratorBasedBuilder):
    """One world's passages (split `"corpus"`) or questions (`"train"`, `"dev"`, `"test"`)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        if self.builder_config.table == "passages":
            features = {"id": text, "title": text, "text": text}
        else:
            names = ("id", "question", "subject", "relation", "passage_id")
            features = {name: text for name in names}
            features["answers"] = tfds.features.Sequence(text)
            features["popularity"] = tfds.features.Scalar(dtype=np.int64)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description="Places of the world and questions about them.",
            homepage="https://www.geonames.org",
            license="Facts: GeoNames, CC BY 4.0",
            disable_shuffling=True,  # rows keep their order, so a row number means the same passage
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        world = gazetteer.build_world(**self.builder_config.settings)
        if self.builder_config.table == "passages":
            return {"corpus": self._generate_examples(world.passages)}
        # A split without examples cannot be stored; reading gives it back as empty.
        filled = [split for split in _SPLITS if world.questions[split]]
        return {split: self._generate_examples(world.questions[split]) for split in filled}

    def _generate_examples(
        self, rows: Sequence[Passage | Question]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, row in enumerate(rows):
            yield key, dataclasses.asdict(row)


class StoredPassages(Sequence[Passage]):
    """Passages by row, each read from disk when asked for."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row):  # an int gives a passage, a slice a list of them
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"no row {row} among {len(self)} passages")
        return Passage(**_decode(self._source[int(row) % len(self)]))


def open_passages(*, data_dir: str | Path, **settings: int) -> StoredPassages:
    """Returns the passages of the world with these settings, prepared first where missing.

    Args:
      data_dir: folder for all worlds.
      **settings: those of `build_world`.

    Raises:
      RagJaxError: as `build_world` does.
    """
    builder = _prepare("passages", settings, Path(data_dir))
    return StoredPassages(builder.as_data_source(split="corpus"))


def load_world(*, data_dir: str | Path, **settings: int) -> World:
    """Returns the world with these settings from `data_dir`, prepared first where missing.

    It equals what `build_world` returns. An interrupted preparation leaves nothing under the final
    name, and is done again.

    Args:
      data_dir: folder for all worlds.
      **settings: those of `build_world`.

    Raises:
      RagJaxError: as `build_world` does.
    """
    passages = list(open_passages(data_dir=data_dir, **settings))
    questions: dict[str, list[Question]] = {split: [] for split in _SPLITS}
    if any(_complete(settings)[split] for split in _SPLITS):
        builder = _prepare("questions", settings, Path(data_dir))
        for split in builder.info.splits:
            rows = map(_decode, builder.as_data_source(split=split))
            questions[split] = [Question(**{**r, "answers": tuple(r["answers"])}) for r in rows]
    return World(passages, questions)


def _prepare(table: str, settings: dict[str, int], data_dir: Path) -> Gazetteer:
    complete = _complete(settings)
    name = "-".join([table, *(f"{key}{value}" for key, value in complete.items()), _digest()])
    config = GazetteerConfig(
        name=name, description=f"The {table} of one world.", table=table, settings=complete
    )
    with _quiet():
        builder = Gazetteer(config=config, data_dir=data_dir, file_format="array_record")
        # Does nothing if the folder is there; else it is written under another name and renamed.
        builder.download_and_prepare()
    return builder


def _complete(settings: dict[str, int]) -> dict[str, int]:
    return {**gazetteer.build_world.__kwdefaults__, **settings}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps progress bars, and remarks on an unregistered configuration, off the terminal."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@functools.cache
def _digest() -> str:
    """Returns a short digest of everything besides the settings that decides a world."""
    digest = hashlib.sha256(places.import_source().__version__.encode())
    for path in sorted(Path(gazetteer.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored row with its bytes as strings and its numbers as Python's."""
    decoded = {}
    for key, value in row.items():
        if isinstance(value, bytes):
            decoded[key] = value.decode()
        elif key == "popularity":
            decoded[key] = int(value)
        else:
            decoded[key] = [item.decode() for item in value]
    return decoded
