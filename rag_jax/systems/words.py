"""BM25 in a run: built by the run's settings, which the report shows with the language found."""

from collections.abc import Sequence
from typing import Any

from rag_jax.data.passages import Passage
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, make_text
from rag_jax.runtime.files import read_json, write_json
from rag_jax.search_config import BM25Config

_FILE = "bm25.json"


def build_words(context: StageContext, passages: Sequence[Passage], settings: BM25Config) -> BM25:
    """BM25 over a run's passages; a file of the stage keeps the settings that were used."""
    words = BM25.build(map(make_text, passages), settings)
    keep_settings(context, words)
    return words


def keep_settings(context: StageContext, words: BM25) -> None:
    """Writes the settings of an index into the stage's folder, for the report."""
    write_json(context.folder / _FILE, words.settings)


def tabulate_words(stages: StageContext, stage: str) -> dict[str, list[list[Any]]]:
    """A table of the report: the settings that `build_words` kept in a stage's folder."""
    found = read_json(stages.path(stage, _FILE))
    return {"BM25's settings": [[*found], [*found.values()]]}
