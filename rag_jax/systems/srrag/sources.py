"""The searched sources: an index of passages each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rag_jax.data.formats import Collection, Passage
from rag_jax.errors import RagJaxError
from rag_jax.hosts import is_first
from rag_jax.pipeline import StageContext
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
    c, passages = session.config, session.read_corpus(context).passages
    texts = [(passage.title, passage.text) for passage in passages]
    rows = {s.name: select_rows(s, passages) for s in c.sources if s.kind == "search"}
    embeddings = context.map_arrays(
        "embeddings.npy",
        len(texts),
        lambda part: session.encode(texts[part]),
        batch_size=1024,
        unit="passages",
    )
    if is_first():
        for name, chosen in rows.items():
            index = Index.build(
                embeddings[chosen],
                backend=c.index.backend,
                encoder=session.encoder_fingerprint,
                corpus=fingerprint_corpus([texts[row] for row in chosen]),
            )
            index.save(context.folder / name)


def make_search(
    session: "Session", context: StageContext, corpus: Collection, count: int
) -> Search:
    """The searched sources: a source's number and questions to their `count` best passages.

    Raises:
        RagJaxError: a source has fewer passages.
    """
    found = {}
    for number, source in enumerate(session.config.sources):
        if source.kind == "search":
            rows = select_rows(source, corpus.passages)
            if len(rows) < count:
                raise RagJaxError(
                    f"config.sources[{number}]: {source.name} has {len(rows)} passages, fewer than "
                    f"the {count} of config.contexts or config.answer.passages; lower that"
                )
            texts = [(corpus.passages[row].title, corpus.passages[row].text) for row in rows]
            index = Index.load(
                context.path("index", source.name),
                encoder=session.encoder_fingerprint,
                corpus=fingerprint_corpus(texts),
            )
            found[number] = (index, texts)

    def search(source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        index, texts = found[source]
        _, rows = index.search(session.encode(questions), count)
        return [
            [(texts[row][0], session.form.shorten(texts[row][1])) for row in ranked]
            for ranked in rows.tolist()
        ]

    return search
