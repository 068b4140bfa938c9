"""Training examples of retrievers: a question, a passage that answers it, and some that do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


@dataclass(frozen=True)
class Pair:
    """A training example: a question and a passage that answers it.

    Attributes:
        question: number of the question.
        positive: row of the passage in the corpus.
        negatives: rows of hard negatives to choose from.
        relevant: rows of all passages known to answer the question and of those with the title and
            the text of one, which are no negatives to it.
    """

    id: str
    question: int
    positive: int
    negatives: tuple[int, ...]
    relevant: frozenset[int]


def list_pairs(
    questions: Sequence[Question],
    negatives: Sequence[Sequence[int]],
    passages: Sequence[Passage],
    *,
    positives: Literal["all", "first"] = "all",
) -> list[Pair]:
    """A training example for each question and each passage relevant to the question.

    Args:
        negatives: for each question, rows of `passages`.
        positives: "first" for one example a question, of the first relevant passage that the data
            names, as DPR's code takes it.

    Raises:
        ValueError: there is not one row of negatives for each question.
    """
    if len(negatives) != len(questions):
        raise ValueError(f"negatives: {len(negatives)} rows for {len(questions)} questions")
    count = 1 if positives == "first" else None
    texts = read_relevant(questions, passages)
    rows, alike = dict.fromkeys(texts, -1), {text: [] for text in texts.values()}
    for row, passage in enumerate(passages):
        if passage.id in texts:
            rows[passage.id] = row
        if (passage.title, passage.text) in alike:
            alike[passage.title, passage.text].append(row)
    pairs = []
    for number, (question, wrong) in enumerate(zip(questions, negatives, strict=True)):
        # The data can name passages that are not in the corpus.
        named = [id for id in question.relevant if id in rows]
        relevant = frozenset(row for id in named for row in alike[texts[id]])
        others = tuple(row for row in wrong if row not in relevant)
        pairs += [Pair(question.id, number, rows[id], others, relevant) for id in named[:count]]
    return pairs


def read_relevant(
    questions: Sequence[Question], passages: Sequence[Passage]
) -> dict[str, tuple[str, str]]:
    """Title and text, by id, of the passages that are relevant to some question."""
    wanted = {id for question in questions for id in question.relevant}
    return {p.id: (p.title, p.text) for p in passages if p.id in wanted}
