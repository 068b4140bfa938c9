"""The searched sources: an index of passages each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from rag_jax.data.formats import Collection, Passage
from rag_jax.errors import RagJaxError
from rag_jax.hosts import is_first
from rag_jax.pipeline import StageContext
from rag_jax.retrieval.encode import list_texts
from rag_jax.retrieval.index import Index, fingerprint_corpus
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.systems.srrag.infer import Search

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


def select_rows(source: SourceConfig, passages: Sequence[Passage]) -> list[int]:
    """The passages that a source searches.

    Raises:
        RagJaxError: there are none.
    """
    rows = [row for row, passage in enumerate(passages) if passage.id.startswith(source.prefix)]
    if not rows:
        raise RagJaxError(
            f"source {source.name}: no passage's id begins with its prefix {source.prefix!r}; they "
            f"are like {passages[0].id!r}"
        )
    return rows


def run_index(session: "Session", context: StageContext) -> None:
    """Embeds the passages and indexes those of each searched source."""
    passages = session.read_corpus(context).passages
    texts = list_texts(passages)
    _select_all(session, passages)  # a source without any is told before all are embedded
    embeddings = context.map_arrays(
        "embeddings.npy",
        len(texts),
        lambda part: session.encode(texts[part]),
        batch_size=1024,
        unit="passages",
    )
    if is_first():
        for number, index in build_indices(session, passages, embeddings).items():
            index.save(context.folder / session.config.sources[number].name)


def build_indices(
    session: "Session", passages: Sequence[Passage], embeddings: Float[np.ndarray, "N E"]
) -> dict[int, Index]:
    """The index of each searched source, by the source's number, over embedded passages."""
    indices = {}
    for number, rows in _select_all(session, passages).items():
        texts = list_texts([passages[row] for row in rows])
        indices[number] = Index.build(
            embeddings[rows],
            backend=session.config.index.backend,
            encoder=session.encoder_fingerprint,
            corpus=fingerprint_corpus(texts),
        )
    return indices


def make_search(
    session: "Session", context: StageContext, corpus: Collection, count: int
) -> Search:
    """The searched sources: a source's number and questions to their `count` best passages.

    Raises:
        RagJaxError: a source has fewer passages.
    """
    indices = {}
    for number, rows in _select_all(session, corpus.passages).items():
        name = session.config.sources[number].name
        if len(rows) < count:
            raise RagJaxError(
                f"config.sources[{number}]: {name} has {len(rows)} passages, fewer than "
                f"the {count} of config.contexts or config.answer.passages; lower that"
            )
        texts = list_texts([corpus.passages[row] for row in rows])
        indices[number] = Index.load(
            context.path("index", name),
            encoder=session.encoder_fingerprint,
            corpus=fingerprint_corpus(texts),
        )
    return search_indices(session, indices, corpus.passages, count)


def search_indices(
    session: "Session", indices: Mapping[int, Index], passages: Sequence[Passage], count: int
) -> Search:
    """Searches each source's index for `count` passages, or for all where there are fewer."""
    selected = _select_all(session, passages)

    def search(source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        index, rows = indices[source], selected[source]
        _, found = index.search(session.encode(questions), min(count, index.size))
        ranked = [[passages[rows[place]] for place in places] for places in found.tolist()]
        return [[(p.title, session.form.shorten(p.text)) for p in own] for own in ranked]

    return search


def _select_all(session: "Session", passages: Sequence[Passage]) -> dict[int, list[int]]:
    """The passages of each searched source, by the source's number."""
    return {
        number: select_rows(source, passages)
        for number, source in enumerate(session.config.sources)
        if source.kind == "search"
    }
