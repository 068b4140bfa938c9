"""PopQA (Mallen et al. 2023, arXiv 2212.10511), as a table or as JSON lines.

A question has `id` (or `idx`), `question`, `possible_answers` as a JSON list (or `answers`),
`prop`, which becomes the type of the question, and `s_pop`, the popularity of the subject, which
may be empty.

The long tail consists of the 1,399 questions about subjects with a popularity below 100. For
subjects of unknown popularity, the field `longtail` decides. `config.data.longtail` restricts the
evaluation to the long tail.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_count, get_filled, get_id, get_text, get_texts
from rag_jax.data.formats.lines import Place
from rag_jax.data.formats.records import parse_json
from rag_jax.data.questions import Question

_LONG_TAIL = 100  # page views a month


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of PopQA."""
    return {"question", "prop", "s_pop"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question, with the passages that come with the question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answers = record.get("possible_answers", record.get("answers"))
    if isinstance(answers, str):
        answers = parse_json(answers, place)
    popularity = get_count(record, "s_pop", place)
    is_known = popularity is not None
    question = Question(
        get_id(record, ["id", "idx"], place),
        get_filled(record, "question", place),
        get_texts({"answers": answers}, "answers", place),
        {},
        get_text(record, "prop", place, default=""),
        popularity,
        longtail=popularity < _LONG_TAIL if is_known else record.get("longtail") is True,
    )
    return Item(place, question, read_contexts(record, place))
