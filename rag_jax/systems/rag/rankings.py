"""The passages found for questions, with the logits of `p(z|x)`; BM25's are logits too."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.evaluation.rankings import Ranked
from rag_jax.models.nn.layers import MASKED
from rag_jax.retrieval import BM25


class Ranking(NamedTuple):
    """The passages found for every question, best first, and their logits of `p(z|x)`.

    Places without a passage have row -1.
    """

    scores: Float[np.ndarray, "N k"]
    rows: Int[np.ndarray, "N k"]


def pad_hits(
    scores: Sequence[Float[np.ndarray, "n"]], rows: Sequence[Int[np.ndarray, "n"]], k: int
) -> Ranking:
    """A ranking of exactly `k` places from at most `k` hits for each question.

    Places without a hit have no probability; where nothing was found, the first place has all of
    it, and the question is answered without a passage.
    """
    ranking = Ranking(
        np.full((len(rows), k), MASKED, np.float32), np.full((len(rows), k), -1, np.int32)
    )
    for i, (found, worth) in enumerate(zip(rows, scores, strict=True)):
        ranking.rows[i, : len(found)], ranking.scores[i, : len(found)] = found, worth
        if not len(found):
            ranking.scores[i, 0] = 0
    return ranking


def reorder(found: Sequence[Ranked], reranked: Sequence[Ranked]) -> Ranking:
    """The passages that a reranker put first, with the retriever's own logits of `p(z|x)`.

    Args:
        found: what the retriever found for each question, with its logits.
        reranked: as many passages for each question, all of them found.
    """
    rows = [[row for row, _ in own] for own in reranked]
    logits = [dict(own) for own in found]
    scores = [[worth[row] for row in own] for worth, own in zip(logits, rows, strict=True)]
    return Ranking(np.asarray(scores, np.float32), np.asarray(rows, np.int32))


def rank_by_words(words: BM25, asked: Sequence[str], depth: int) -> Ranking:
    """BM25's passages for each question; its scores are the logits of `p(z|x)`."""
    return pad_hits(*words.search(asked, depth), depth)
