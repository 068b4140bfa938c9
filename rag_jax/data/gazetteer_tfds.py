"""The built-in world as a dataset of TensorFlow Datasets, in ArrayRecord, which has random access.

TensorFlow itself is not needed, nor imported. The settings, the version of the facts and the
source of the sentences are part of a dataset's folder name, so two worlds never share files.
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
from rag_jax.data.gazetteer import Passage, Question, places

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
        # A split without examples cannot be stored.
        filled = [split for split in _SPLITS if world.questions[split]]
        return {split: self._generate_examples(world.questions[split]) for split in filled}

    def _generate_examples(
        self, rows: Sequence[Passage | Question]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, row in enumerate(rows):
            yield key, dataclasses.asdict(row)


def prepare_world(data_dir: str | Path, **settings: int) -> None:
    """Writes the world with these settings where it is missing, for `config.data.path` to name.

    An interrupted preparation leaves nothing under the final name, and is done again.

    Args:
      data_dir: the folder.
      **settings: those of `build_world`.

    Raises:
      RagJaxError: as `build_world` does.
    """
    complete = {**gazetteer.build_world.__kwdefaults__, **settings}
    _prepare("passages", complete, Path(data_dir))
    # Of a table without rows there is nothing to store.
    if any(complete[split] for split in _SPLITS):
        _prepare("questions", complete, Path(data_dir))


def _prepare(table: str, settings: dict[str, int], data_dir: Path) -> None:
    name = "-".join([table, *(f"{key}{value}" for key, value in settings.items()), _digest()])
    config = GazetteerConfig(
        name=name, description=f"The {table} of one world.", table=table, settings=settings
    )
    with _quiet():
        builder = Gazetteer(config=config, data_dir=data_dir, file_format="array_record")
        # Does nothing if the folder is there; else it is written under another name and renamed.
        builder.download_and_prepare()


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
