"""Plain JSON lines: passages, and questions with answers.

A passage has `id` (or `_id`), `text` and optionally `title`. A question has `id`, `question`,
`answers` and optionally `passage_id` (the gold passage), `type` and `popularity`.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.fields import (
    Item,
    check_blank,
    get_count,
    get_filled,
    get_id,
    get_text,
    get_texts,
)
from rag_jax.data.formats.lines import Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question."""
    return {"question", "answers"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    relevant = {}
    if record.get("passage_id") is not None:
        relevant[get_id(record, ["passage_id"], place)] = 1
    question = Question(
        get_id(record, ["id"], place),
        get_filled(record, "question", place),
        get_texts(record, "answers", place),
        relevant,
        get_text(record, "type", place, default=""),
        get_count(record, "popularity", place),
    )
    return Item(place, question)


def parse_passage(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """Parses a passage.

    Raises:
        BadLineError: if a required field is missing, of the wrong type, or the text is blank.
    """
    id = get_id(record, ["id", "_id"], place)
    title, text = get_text(record, "title", place, default=""), get_text(record, "text", place)
    return [Passage(id, title, check_blank(text, f"the text of passage {id!r}", place))]
