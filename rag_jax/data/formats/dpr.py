"""DPR's files (Karpukhin et al. 2020, `github.com/facebookresearch/DPR`).

Passages are a table with the heading `id`, `text`, `title` (`psgs_w100.tsv`). Questions are a JSON
array of `question`, `answers` and passages, gold ones and others for training or those that a
search found (`ctxs`), or a table without a heading of a question and a list of answers
(`nq-test.qa.csv`). What a search found is written as DPR writes it.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_filled, get_id, get_texts
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import open_atomic, to_json

_IDS = ("id", "q_id", "question_id")


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is a question with passages."""
    return "question" in record and bool({"ctxs", "positive_ctxs"} & record.keys())


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """A question; without an id it is named by its file and number."""
    question = Question(
        get_id(record, _IDS, place, default=f"{place.path.name}:{place.item}"),
        get_filled(record, "question", place),
        get_texts(record, "answers", place),
        {},
    )
    return Item(place, question, read_contexts(record, place))


def matches_row(row: Sequence[str]) -> bool:
    """Whether a row is a question and its answers."""
    return len(row) == 2 and row[1].lstrip().startswith("[")


def parse_row(row: Sequence[str], place: Place) -> Item:
    """A question, named by its file and line. Answers are a list as Python writes it."""
    if len(row) != 2:
        raise BadLineError(f"{place}: must be a question and its answers, with a tab between them")
    try:
        answers = ast.literal_eval(row[1].strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise BadLineError(f"{place}: the answers are no list of texts") from None
    record = {"question": row[0], "answers": answers}
    return parse(record, place)


def write_results(
    path: Path,
    questions: Sequence[Question],
    ranked: Sequence[Sequence[tuple[Passage, float]]],
) -> None:
    """Writes what a search found, for readers such as FiD's, one question at a time.

    Args:
        ranked: for each question the passages and their scores, best first.
    """
    with open_atomic(path) as file:
        before = "["
        for question, found in zip(questions, ranked, strict=True):
            record = {
                "id": question.id,
                "question": question.question,
                "answers": question.answers,
                "ctxs": [
                    {
                        "id": passage.id,
                        "title": passage.title,
                        "text": passage.text,
                        "score": repr(float(score)),  # as text, which DPR does too
                        "has_answer": has_answer(passage.text, question.answers),
                    }
                    for passage, score in found
                ],
            }
            file.write(before + to_json(record))
            before = ",\n"
        file.write("]\n" if before != "[" else "[]\n")
