"""ComplexWebQuestions (Talmor and Berant 2018, arXiv 1803.06643).

A question has `ID`, `question`, `answers`, a list of objects with `answer` and `aliases`, and
`compositionality_type`, which becomes the type of the question. Test files may have no answers. The
web snippets are published apart, so the folder must contain a file of passages.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.fields import (
    Item,
    get_filled,
    get_id,
    get_objects,
    get_text,
    get_texts,
)
from rag_jax.data.formats.lines import Place
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ComplexWebQuestions."""
    others = {"answer", "answerKey", "choices", "options"}
    listed = record.get("answers")
    has_texts = isinstance(listed, list) and any(isinstance(answer, str) for answer in listed)
    return {"ID", "question"} <= record.keys() and others.isdisjoint(record) and not has_texts


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answers = []
    for answer in get_objects(record, "answers", place):
        answers.append(get_text(answer, "answer", place, default=""))  # some have only an id
        if answer.get("aliases") is not None:
            answers += get_texts(answer, "aliases", place)
    question = Question(
        get_id(record, ["ID"], place),
        get_filled(record, "question", place),
        tuple(dict.fromkeys(answer for answer in answers if answer.strip())),
        {},
        get_text(record, "compositionality_type", place, default=""),
    )
    return Item(place, question)
