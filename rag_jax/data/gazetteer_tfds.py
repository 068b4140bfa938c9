"""The built-in world as a TensorFlow Datasets dataset, in ArrayRecord for random access.

TensorFlow itself is neither needed nor imported. The folder name of a dataset contains the settings
and a digest of the facts and of the sentences, so two worlds never share files.
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
from rag_jax.runtime.paths import expand_path

_SPLITS = ("train", "dev", "test")


@dataclass
class GazetteerConfig(tfds.core.BuilderConfig):
    """Configuration of one table of one world.

    Attributes:
        table: `"passages"` or `"questions"`.
        settings: all keyword arguments of `build_world`.
    """

    table: str = "passages"
    settings: dict[str, int] = dataclasses.field(default_factory=dict)


class Gazetteer(tfds.core.GeneratorBasedBuilder):
    """Builder of the passages (split `"corpus"`) or of the questions of one world."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        if self.builder_config.table == "passages":
            features = {"id": text, "title": text, "text": text}
        else:
            names = ("id", "question", "subject", "relation", "passage_id")
            features = dict.fromkeys(names, text)
            features["answers"] = tfds.features.Sequence(text)
            features["popularity"] = tfds.features.Scalar(dtype=np.int64)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description="Places of the world and questions about them.",
            homepage="https://www.geonames.org",
            license="Facts: GeoNames, CC BY 4.0",
            disable_shuffling=True,  # keeps row numbers equal to positions in the corpus
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        world = gazetteer.build_world(**self.builder_config.settings)
        if self.builder_config.table == "passages":
            return {"corpus": self._generate_examples(world.passages)}
        # A split without examples cannot be stored.
        splits = [split for split in _SPLITS if world.questions[split]]
        return {split: self._generate_examples(world.questions[split]) for split in splits}

    def _generate_examples(
        self, rows: Sequence[Passage | Question]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, row in enumerate(rows):
            yield key, dataclasses.asdict(row)


def prepare_world(data_dir: str | Path, **settings: int) -> None:
    """Writes the datasets of a world to a folder that `config.data.path` can name.

    Datasets that exist are kept. An interrupted preparation leaves nothing under the final name, so
    the next call starts the preparation over.

    The settings are those of `build_world`; missing ones have their defaults.

    Raises:
        RagJaxError: if a setting is out of range, or the world has too few questions.
    """
    data_dir = expand_path(data_dir)
    complete = {**gazetteer.build_world.__kwdefaults__, **settings}
    _prepare("passages", complete, data_dir)
    # A table without rows cannot be stored.
    if any(complete[split] for split in _SPLITS):
        _prepare("questions", complete, data_dir)


def _prepare(table: str, settings: dict[str, int], data_dir: Path) -> None:
    name = "-".join([table, *(f"{key}{value}" for key, value in settings.items()), _digest()])
    about = f"The {table} of one world."
    config = GazetteerConfig(name=name, description=about, table=table, settings=settings)
    with _quiet():
        builder = Gazetteer(config=config, data_dir=data_dir, file_format="array_record")
        # Does nothing if the folder exists; otherwise writes a temporary folder and renames it.
        builder.download_and_prepare()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides progress bars and the warning about an unregistered configuration."""
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
    """Returns a short digest of everything that determines a world except the settings."""
    digest = hashlib.sha256(places.import_source().__version__.encode())
    for path in sorted(Path(gazetteer.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
