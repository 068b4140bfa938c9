"""Hard negatives: passages that BM25 ranks high for a question and that do not answer it."""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.retrieval.bm25 import BM25
from rag_jax.retrieval.pairs import read_relevant
from rag_jax.retrieval.texts import make_text
from rag_jax.search_config import BM25Config


def make_miner(
    passages: Sequence[Passage],
    questions: Sequence[Question],
    settings: BM25Config = BM25Config(),
    *,
    depth: int,
    count: int,
) -> Callable[[Sequence[Question]], list[dict[str, Any]]]:
    """A function from a batch of the questions to records `{"id", "rows"}` of hard negatives.

    The first `count` negatives that the data names, as DPR's files do. Without any, BM25 ranks
    `depth` passages for a question, of which `choose_negatives` takes up to `count`.
    """
    depth = min(depth, len(passages))

    @functools.cache
    def build_bm25() -> BM25:
        return BM25.build(map(make_text, passages), settings)

    @functools.cache
    def read_texts() -> dict[str, tuple[str, str]]:
        return read_relevant(questions, passages)

    @functools.cache
    def number_rows() -> dict[str, int]:
        wanted = {id for question in questions for id in question.negatives[:count]}
        return {p.id: row for row, p in enumerate(passages) if p.id in wanted}

    def mine(batch: Sequence[Question]) -> list[dict[str, Any]]:
        rows = {q.id: [number_rows()[id] for id in q.negatives[:count]] for q in batch}
        searched = [question for question in batch if not question.negatives]
        if searched:
            _, ranked = build_bm25().search([question.question for question in searched], depth)
            for question, found in zip(searched, ranked, strict=True):
                texts = read_texts()
                known = [texts[id] for id in question.relevant if id in texts]
                options = {"relevant": known, "count": count}
                rows[question.id] = choose_negatives(question, found, passages, **options)
        return [{"id": question.id, "rows": rows[question.id]} for question in batch]

    return mine


def choose_negatives(
    question: Question,
    ranked: Int[np.ndarray, "n"],
    passages: Sequence[Passage],
    *,
    relevant: Collection[tuple[str, str]] = (),
    count: int,
) -> list[int]:
    """The first `count` passages of a ranking that do not answer a question, as rows of `passages`.

    Left out are passages known to be relevant and others with the title and the text of one, the
    passage that is the question itself and, as in DPR (Karpukhin et al. 2020, section 3.2),
    passages that hold an answer; a title counts too, because the encoder reads it. Fewer where the
    ranking has no more.

    Args:
        relevant: titles and texts of the relevant passages.
    """

    def is_negative(row: int) -> bool:
        passage = passages[row]
        answered = has_answer(f"{passage.title} {passage.text}", question.spoken_answers)
        known = passage.id in question.relevant or question.is_passage(passage.id)
        known |= (passage.title, passage.text) in relevant
        return not known and not answered

    return list(itertools.islice(filter(is_negative, ranked.tolist()), count))
