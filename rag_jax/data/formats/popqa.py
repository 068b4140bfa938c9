"""PopQA (Mallen et al. 2023, arXiv 2212.10511), as a table or as JSON lines.

A question has `id` (or `idx`), `question`, `possible_answers` as a list in JSON (or `answers`),
`prop`, which becomes its type, and `s_pop`, its subject's popularity, where that is known.

The long tail, of 1,399 questions, is of subjects whose popularity is below 100; `longtail` tells it
of subjects whose popularity is not known. `config.data.longtail` evaluates on it alone.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Item,
    get_count,
    get_filled,
    get_id,
    get_text,
    get_texts,
)
from rag_jax.data.formats.lines import Place, parse_json
from rag_jax.data.questions import Question

_LONG_TAIL = 100  # page views a month


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is such a question."""
    return {"question", "prop", "s_pop"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """A question, with its passages where it has some."""
    answers = record.get("possible_answers", record.get("answers"))
    if isinstance(answers, str):
        answers = parse_json(answers, place)
    popularity = get_count(record, "s_pop", place)
    known = popularity is not None
    question = Question(
        get_id(record, ["id", "idx"], place),
        get_filled(record, "question", place),
        get_texts({"answers": answers}, "answers", place),
        {},
        get_text(record, "prop", place, default=""),
        popularity,
        longtail=popularity < _LONG_TAIL if known else record.get("longtail") is True,
    )
    return Item(place, question, read_contexts(record, place))
