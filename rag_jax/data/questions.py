"""Passages, questions about them, and both together as a run keeps them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rag_jax.data.passages import Passage, PassageFile
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json

# What `copy_collection` writes.
PASSAGES, QUESTIONS = "passages.jsonl", "questions.json"
# Keeps passages that come one at a time, in memory (`list`) or in a file (`write_passages`).
Keep = Callable[[Iterable[Passage]], Sequence[Passage]]


@dataclass(frozen=True)
class Question:
    """A question, its acceptable answers if any are known, relevant passages' grades by id, and
    where the data tells of them its type, its subject's popularity, the choices it leaves, and that
    its subject is in PopQA's long tail.

    `choices` are texts by label; the answer is then a label, and `question` says what to choose.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    relevant: Mapping[str, int]
    type: str = ""
    popularity: int | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    longtail: bool = False


@dataclass(frozen=True)
class Collection:
    """A corpus, in memory or in a file, and questions about it by split."""

    passages: Sequence[Passage]
    questions: dict[str, list[Question]]


def choose_questions(
    collection: Collection, split: str, *, count: int, seed: int
) -> list[Question]:
    """The split's questions that have an answer: all, or `count` drawn at random, in their order.

    Raises:
        RagJaxError: there is none.
    """
    questions = [q for q in collection.questions.get(split, []) if q.answers]
    if not questions:
        raise RagJaxError(f"config.data: there are no {split!r} questions with answers")
    if not 0 < count < len(questions):
        return questions
    chosen = np.random.default_rng(seed).permutation(len(questions))[:count]
    return [questions[i] for i in sorted(chosen.tolist())]


def load_collection(folder: Path) -> Collection:
    """Reads what `copy_collection` wrote; a passage whenever it is asked for."""
    splits = read_json(folder / QUESTIONS)
    return Collection(
        PassageFile(folder / PASSAGES),
        {
            split: [Question(**{**r, "answers": tuple(r["answers"])}) for r in records]
            for split, records in splits.items()
        },
    )
