"""Rankings of passages and what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import answer_hits, ndcg, recall, reciprocal_rank

DEPTHS = (1, 5, 20)
RECALL_DEPTH, NDCG_DEPTH = 100, 10
COLUMNS = (
    "n",
    *(f"answer@{k}" for k in DEPTHS),
    *(f"passage@{k}" for k in DEPTHS),
    "mrr",
    f"ndcg@{NDCG_DEPTH}",
    f"recall@{RECALL_DEPTH}",
)
_SHOWN = 5  # passages of a ranking that a record of it names


def score_ranking(
    question: Question,
    scores: Float[np.ndarray, "k"],
    rows: Int[np.ndarray, "k"],
    passages: Sequence[Passage],
) -> dict[str, Any]:
    """One question's record: the first passages, and every metric that its data allow.

    `answer@k` is DPR's accuracy, whether the text of one of the first k passages has an answer;
    `passage@k` whether one of them is relevant.
    """
    found = [passages[row] for row in rows.tolist()]
    ids = [passage.id for passage in found]
    record = {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "relevant": question.relevant,
        "passages": [
            {"id": p.id, "title": p.title, "text": p.text, "score": float(score)}
            for p, score in zip(found[:_SHOWN], scores, strict=False)
        ],
    }
    if question.answers:
        record |= answer_hits([passage.text for passage in found], question.answers, DEPTHS)
    if question.relevant:
        hits = [id in question.relevant for id in ids]
        record |= {f"passage@{k}": float(any(hits[:k])) for k in DEPTHS}
        record["mrr"] = reciprocal_rank(ids, question.relevant)
        record[f"ndcg@{NDCG_DEPTH}"] = ndcg(ids, question.relevant, NDCG_DEPTH)
        record[f"recall@{RECALL_DEPTH}"] = recall(ids, question.relevant, RECALL_DEPTH)
    return record


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The number of questions, and each metric's mean over those that have it."""
    numbers: dict[str, Any] = {"n": len(records)}
    for name in COLUMNS[1:]:
        values = [record[name] for record in records if name in record]
        if values:
            numbers[name] = float(np.mean(values))
    return numbers
