"""Questions, and collections of passages and questions as a run stores them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.passages import Passage, PassageFile
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.outside import parsing

_LARGEST = 4 << 30  # bytes of all questions
# Names of the files that `copy_collection` writes.
PASSAGES, QUESTIONS = "passages.jsonl", "questions.json"
# Stores a stream of passages, in memory (`list`) or in a file (`write_passages`).
Keep = Callable[[Iterable[Passage]], Sequence[Passage]]


@dataclass(frozen=True)
class Question:
    """Question with its acceptable answers and relevant passages.

    Attributes:
        id: unique within the split.
        question: text of the question. With choices, the text ends with the list of choices.
        answers: acceptable answers; empty if none are known. With choices, labels of choices.
        relevant: grades of the relevant passages, by passage id.
        type: empty if the data has none.
        popularity: of the question's subject; None if the data has none.
        choices: texts of the choices by label; empty if the answer is free text.
        longtail: True if the subject is in PopQA's long tail.
        negatives: ids of passages that the data names as wrong, for training a retriever; empty if
            the data has none.
        dataset: name of the dataset in a mixture; empty for a collection of one dataset.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    relevant: Mapping[str, int]
    type: str = ""
    popularity: int | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    longtail: bool = False
    negatives: tuple[str, ...] = ()
    dataset: str = ""

    @property
    def spoken_answers(self) -> tuple[str, ...]:
        """What a passage says that has an answer: with choices their texts, not their labels."""
        return tuple(self.choices.get(answer, answer) for answer in self.answers)

    def is_passage(self, id: str) -> bool:
        """Whether a passage is the question itself, as for the queries of ArguAna and Quora.

        BEIR leaves a passage with the question's own id out of the question's ranking. A passage
        that is judged relevant stays, and so does every passage where none is judged.
        """
        return bool(self.relevant) and id == self.id and id not in self.relevant


@dataclass(frozen=True)
class Collection:
    """Corpus, in memory or in a file, and the questions about the corpus by split."""

    passages: Sequence[Passage]
    questions: dict[str, list[Question]]


def choose_questions(
    collection: Collection, split: str, *, count: int, seed: int
) -> list[Question]:
    """Draws `count` questions with an answer from a split; all if 0 or if there are fewer.

    The draw is random, but the order of the split is kept.

    Raises:
        RagJaxError: if the split has no questions with answers.
    """
    questions = [q for q in collection.questions.get(split, []) if q.answers]
    if not questions:
        raise RagJaxError(f"config.data: there are no {split!r} questions with answers")
    if not 0 < count < len(questions):
        return questions
    chosen = np.random.default_rng(seed).permutation(len(questions))[:count]
    return [questions[i] for i in sorted(chosen.tolist())]


def store_questions(folder: Path, questions: Mapping[str, Sequence[Question]]) -> None:
    """Writes the questions of a collection by split, for `load_collection`.

    Only a question with negatives or with a dataset's name has the field.
    """
    rare = ("negatives", "dataset")
    records = {
        split: [
            {name: value for name, value in vars(q).items() if value or name not in rare}
            for q in listed
        ]
        for split, listed in questions.items()
    }
    write_json(folder / QUESTIONS, records)


def load_collection(folder: Path) -> Collection:
    """Loads the collection that `copy_collection` wrote to a folder.

    Questions are loaded into memory; passages are read from disk on access.
    """
    with parsing(folder / QUESTIONS):
        questions = {
            split: [_load_question(record) for record in records]
            for split, records in read_json(folder / QUESTIONS, largest=_LARGEST).items()
        }
    return Collection(PassageFile(folder / PASSAGES), questions)


def _load_question(record: Mapping[str, Any]) -> Question:
    lists = {name: tuple(record.get(name, ())) for name in ("answers", "negatives")}
    return Question(**{**record, **lists})
