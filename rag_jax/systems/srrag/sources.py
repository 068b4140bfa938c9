"""The searched sources: an index of passages each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection
from rag_jax.pipeline.runner import StageContext
from rag_jax.retrieval.encode import PIECE, list_texts
from rag_jax.retrieval.index import Index, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.systems.srrag.infer import Search

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


class Searched(NamedTuple):
    """A searched source: the index of its passages, and their rows in the corpus."""

    index: Index
    rows: Int[np.ndarray, "n"]


def select_rows(source: SourceConfig, passages: Sequence[Passage]) -> Int[np.ndarray, "n"]:
    """The rows of the passages that a source searches.

    Raises:
        RagJaxError: there are none.
    """
    rows = np.flatnonzero([passage.id.startswith(source.prefix) for passage in passages])
    if not rows.size:
        raise RagJaxError(
            f"source {source.name}: no passage's id begins with its prefix {source.prefix!r}; they "
            f"are like {passages[0].id!r}"
        )
    return rows


def run_index(session: "Session", context: StageContext) -> None:
    """Embeds the passages and indexes those of each searched source."""
    passages = session.read_corpus(context).passages
    _select_all(session, passages)  # a source without any is told before all are embedded
    embeddings = context.map_arrays(
        "embeddings.npy",
        len(passages),
        lambda part: session.encode(list_texts(passages[part])),
        batch_size=PIECE,
        unit="passages",
    )
    if is_first():
        for number, source in build_indices(session, passages, embeddings).items():
            source.index.save(context.folder / session.config.sources[number].name)


def build_indices(
    session: "Session", passages: Sequence[Passage], embeddings: Float[np.ndarray, "N E"]
) -> dict[int, Searched]:
    """The searched sources, by number, over embedded passages."""
    searched, corpus = {}, fingerprint_corpus(passages)  # of all: rows are told by it too
    for number, rows in _select_all(session, passages).items():
        index = Index.build(
            embeddings if len(rows) == len(embeddings) else embeddings[rows],
            backend=session.config.index.backend,
            encoder=session.encoder_fingerprint,
            corpus=corpus,
        )
        searched[number] = Searched(index, rows)
    return searched


def make_search(
    session: "Session", context: StageContext, corpus: Collection, count: int
) -> Search:
    """The searched sources: a source's number and questions to their `count` best passages.

    Raises:
        RagJaxError: a source has fewer passages.
    """
    searched, fingerprint = {}, fingerprint_corpus(corpus.passages)
    for number, rows in _select_all(session, corpus.passages).items():
        name = session.config.sources[number].name
        if len(rows) < count:
            raise RagJaxError(
                f"config.sources[{number}]: {name} has {len(rows)} passages, fewer than "
                f"the {count} of config.contexts or config.answer.passages; lower that"
            )
        index = Index.load(
            context.path("index", name),
            encoder=session.encoder_fingerprint,
            corpus=fingerprint,
        )
        searched[number] = Searched(index, rows)
    return search_indices(session, searched, corpus.passages, count)


def search_indices(
    session: "Session", searched: Mapping[int, Searched], passages: Sequence[Passage], count: int
) -> Search:
    """Searches each source's index for `count` passages, or for all where there are fewer."""

    def search(source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        index, rows = searched[source]
        _, found = index.search(session.encode(questions), min(count, index.size))
        ranked = [[passages[rows[place]] for place in places] for places in found.tolist()]
        return [[(p.title, session.form.shorten(p.text)) for p in own] for own in ranked]

    return search


def _select_all(session: "Session", passages: Sequence[Passage]) -> dict[int, Int[np.ndarray, "n"]]:
    """The passages' rows of each searched source, by the source's number."""
    return {
        number: select_rows(source, passages)
        for number, source in enumerate(session.config.sources)
        if source.kind == "search"
    }
