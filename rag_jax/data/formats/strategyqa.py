"""StrategyQA (Geva et al. 2021, arXiv 2101.02235): questions to be answered with yes or no.

A question has `qid`, `question`, `term` and `answer`, true or false; test files have no answer.
The paragraphs of the evidence are published apart, so the folder must contain a file of passages.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.fields import TRUTH, Item, get_answers, get_filled, get_id
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.formats.tables import is_table
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of StrategyQA."""
    return {"qid", "question", "term"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answer = record.get("answer")
    if is_table(place.path):
        answer = TRUTH.get(str(answer).lower(), answer)
    if answer is not None and not isinstance(answer, bool):
        raise BadLineError(f"{place}: answer={answer!r:.40} must be true or false")
    id, text = get_id(record, ["qid"], place), get_filled(record, "question", place)
    return Item(place, Question(id, text, get_answers({"answer": answer}, place), {}))
