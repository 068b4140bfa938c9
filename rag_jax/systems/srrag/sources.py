"""The searched sources: an index of passages each, and the room that their knowledge needs."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import EncoderConfig, IndexConfig
from rag_jax.data.batches import round_up
from rag_jax.data.passages import Passage, find_prefixed, fingerprint_corpus
from rag_jax.evaluation.rankings import Ranked
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.encode import PIECE
from rag_jax.retrieval.index import Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.embeddings import embed_corpus
from rag_jax.systems.reranking import Reranking, list_ranks
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.systems.srrag.data import Format, join_passages
from rag_jax.systems.srrag.infer import FoundText, Search
from rag_jax.systems.stages import list_ranked

Embed = Callable[..., Float[np.ndarray, "N E"]]  # embeds texts


class Searched(NamedTuple):
    """A searched source: the index of its passages, and the passages' rows in the corpus."""

    index: Index
    rows: Int[np.ndarray, "n"]


def select_rows(source: SourceConfig, passages: Sequence[Passage]) -> Int[np.ndarray, "n"]:
    """The rows of the passages that a source searches.

    Raises:
        RagJaxError: there are none.
    """
    if source.prefix:
        rows = find_prefixed(passages, source.prefix)
    else:
        rows = np.arange(len(passages))
    if not rows.size:
        raise RagJaxError(
            f"source {source.name}: no passage's id begins with its prefix {source.prefix!r}; they "
            f"are like {passages[0].id!r}"
        )
    return rows


def select_all(
    sources: Sequence[SourceConfig], passages: Sequence[Passage]
) -> dict[int, Int[np.ndarray, "n"]]:
    """The rows of each searched source's passages, by the source's number."""
    return {
        number: select_rows(source, passages)
        for number, source in enumerate(sources)
        if source.kind == "search"
    }


def check_sources(
    passages: Sequence[Passage], sources: Sequence[SourceConfig], *, count: int, setting: str
) -> list[str]:
    """A remark for every searched source that has fewer passages than it is asked for.

    Args:
        count: number of passages that a source has to give a question.
        setting: the setting that asks for them.

    Raises:
        RagJaxError: a source has no passages.
    """
    return [
        f"{setting}={count}: {sources[number].name} has only {len(rows)}, and all are read"
        for number, rows in select_all(sources, passages).items()
        if len(rows) < count
    ]


def run_source_indices(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    sources: Sequence[SourceConfig],
    encoder: Pretrained,
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    index: IndexConfig,
) -> None:
    """Embeds the passages and indexes the passages of each searched source."""
    embeddings = embed_corpus(context, passages, encoder, encode_passages, encoding)
    if is_first():
        made_by = {"encoder": encoder.fingerprint}
        built = build_indices(passages, sources, embeddings, index, **made_by)
        for number, source in built.items():
            source.index.save(context.folder / sources[number].name)


def build_indices(
    passages: Sequence[Passage],
    sources: Sequence[SourceConfig],
    embeddings: Float[np.ndarray, "N E"],
    index: IndexConfig,
    *,
    encoder: str,
) -> dict[int, Searched]:
    """The searched sources, by number, over embedded passages."""
    searched = {}
    corpus = fingerprint_corpus(passages)  # of all passages: rows depend on all of them
    for number, rows in select_all(sources, passages).items():
        own = embeddings if len(rows) == len(embeddings) else embeddings[rows]
        built = Index.build(own, **vars(index), encoder=encoder, corpus=corpus)
        searched[number] = Searched(built, rows)
    return searched


def load_indices(
    context: StageContext,
    passages: Sequence[Passage],
    sources: Sequence[SourceConfig],
    *,
    encoder: str,
) -> dict[int, Searched]:
    """The searched sources, by number, from the stage "index"; `encoder` is a fingerprint."""
    searched, corpus = {}, fingerprint_corpus(passages)
    for number, rows in select_all(sources, passages).items():
        folder = context.path("index", sources[number].name)
        searched[number] = Searched(Index.load(folder, encoder=encoder, corpus=corpus), rows)
    return searched


def search_indices(
    searched: Mapping[int, Searched],
    passages: Sequence[Passage],
    embed: Embed,
    cut: Callable[[Passage], tuple[str, str]],
    *,
    count: int,
    reranking: Reranking | None = None,
) -> Search:
    """A search of each source's index for `count` passages, or all if the source has fewer.

    Args:
        cut: gives the part of a passage's title and text that is read.
        reranking: orders what the index finds anew; None to leave that as it is.
    """

    def cut_once(ranked: Sequence[Ranked]) -> dict[int, tuple[str, str, str]]:
        # Many questions find the same passages, and a cut takes the tokenizer.
        rows = sorted({row for row, _ in itertools.chain(*ranked)})
        found = zip(rows, map(passages.__getitem__, rows), strict=True)
        return {row: (*cut(passage), passage.id) for row, passage in found}

    def search(source: int, questions: Sequence[str]) -> list[list[FoundText]]:
        asked, wanted = searched[source], count
        if reranking is not None:
            wanted = reranking.count(count, asked.index.size)
        found = list_found({source: asked}, embed, questions, count=wanted)[source]
        best, ranks = found, [[{}] * len(own) for own in found]
        if reranking is not None:
            best = [own[:count] for own in reranking.order(questions, found, passages)]
            ranks = [list_ranks(*pair) for pair in zip(found, best, strict=True)]
        texts = cut_once(best)
        return [
            [
                FoundText(*texts[row], score, own)
                for (row, score), own in zip(ranked, places, strict=True)
            ]
            for ranked, places in zip(best, ranks, strict=True)
        ]

    return search


def list_found(
    searched: Mapping[int, Searched], embed: Embed, questions: Sequence[str], *, count: int
) -> dict[int, list[Ranked]]:
    """What each source's index finds for questions, as rows of the corpus, at most `count`."""
    queries, found = embed(questions), {}
    for number, (index, rows) in searched.items():
        scores, places = index.search(queries, min(count, index.size))
        found[number] = list_ranked(scores, rows[places])
    return found


# The room for knowledge.


def run_lengths(context: StageContext, *, passages: Sequence[Passage], format: Format) -> None:
    """Measures the longest passage as knowledge, so that no engine tokenizes the corpus.

    A stage of its own: in the index's, another language model would embed the corpus again.
    """

    def measure(part: Sequence[Passage]) -> Float[np.ndarray, "n"]:
        return np.asarray(list(measure_passages(part, format)), np.float32)

    lengths = context.map("lengths.npy", passages, measure, batch_size=PIECE, unit="passages")
    if is_first():
        write_json(context.folder / "longest.json", {"longest_passage": int(lengths.max())})


def read_longest(context: StageContext) -> int:
    """Number of tokens of the longest passage as knowledge, from the stage "lengths"."""
    return read_json(context.path("lengths", "longest.json"))["longest_passage"]


def measure_passages(passages: Sequence[Passage], format: Format) -> Iterator[int]:
    """Yields the number of tokens of each passage as a knowledge block of its own."""
    for passage in passages:
        block = join_passages([format.cut(passage)])
        yield len(format.encode_knowledge(block))


def measure_corpus(passages: Sequence[Passage], format: Format) -> dict[str, int]:
    """The number of tokens of the `longest` passage as knowledge, and how many are `cut`."""
    longest = cut = 0
    for passage in passages:
        read = format.cut(passage)
        longest = max(longest, len(format.encode_knowledge(join_passages([read]))))
        cut += read[1] != passage.text
    return {"longest": longest, "cut": cut}


def count_slots(longest: int, passages: int, max_verbalised: int) -> int:
    """Number of cache slots for the knowledge of any source.

    Args:
        longest: number of tokens of the longest passage.
        max_verbalised: largest number of tokens of a verbalisation.
    """
    digits = sum(len(str(number)) - 1 for number in range(1, passages + 1))  # of [10] and on
    return round_up(1 + max(max_verbalised, passages * longest + digits), 16)
