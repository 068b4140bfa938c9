"""Hard negatives: passages that look right and are not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.bm25 import BM25
from rag_jax.retrieval.encode import make_text


def mine_negatives(
    context: StageContext,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    *,
    depth: int,
    count: int,
) -> None:
    """Writes a stage's `negatives.jsonl`: what BM25 takes for answers to each question.

    A line is `{"id", "rows"}`, with at most `count` rows of `passages` among the first `depth`, as
    `choose_negatives` has it.
    """
    bm25 = BM25.build(map(make_text, passages))
    depth = min(depth, len(passages))

    def mine(batch: Sequence[Question]) -> list[dict[str, Any]]:
        _, rows = bm25.search([question.question for question in batch], depth)
        return [
            {"id": q.id, "rows": choose_negatives(q, ranked, passages, count=count)}
            for q, ranked in zip(batch, rows, strict=True)
        ]

    context.map_batches("negatives.jsonl", questions, mine, batch_size=1024, unit="questions")


def choose_negatives(
    question: Question,
    ranked: Int[np.ndarray, "k"],
    passages: Sequence[Passage],
    *,
    count: int,
) -> list[int]:
    """The first `count` passages of a ranking that answer nothing, as rows of `passages`.

    Left out are those known to be relevant and, as in DPR (Karpukhin et al. 2020, section 3.2),
    those that hold an answer; a title counts too, for the encoder reads it. Fewer where the
    ranking has no more.
    """
    chosen = []
    for row in ranked.tolist():
        if len(chosen) == count:
            break
        passage = passages[row]
        answered = has_answer(f"{passage.title} {passage.text}", question.answers)
        if passage.id not in question.relevant and not answered:
            chosen.append(row)
    return chosen
