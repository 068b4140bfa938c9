"""RAGAS's rows (Es et al. 2024, arXiv 2309.15217), of its test sets and of its evaluations.

The gold answer is `reference`, with the question as `user_input`, or in older versions
`ground_truth` or a list `ground_truths`, with `question`. `response`, or `answer` in older
versions, is what an evaluated system wrote, and is not read. `reference_contexts` are gold
passages. `retrieved_contexts` are what a system found; so are `contexts` (or `context`) beside an
`answer`, and else they are what the question was made of. In a table, a list is as Python writes
it.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats import dpr
from rag_jax.data.formats.fields import Context, Item, get_filled, get_text, get_texts
from rag_jax.data.formats.jsonl import has_options
from rag_jax.data.formats.lines import Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

_GOLD = ("reference", "ground_truth", "ground_truths")
_CONTEXTS = ("reference_contexts", "retrieved_contexts", "contexts", "context")


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a row of RAGAS."""
    is_old = "question" in record and bool({*_GOLD[1:]} & record.keys())
    # Without its choices the label of one of them would be the answer.
    return (is_old or {"user_input", "reference"} <= record.keys()) and not has_options(record)


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    record = dpr.parse_cells(record, (*_GOLD, *_CONTEXTS), place)
    name = "user_input" if "user_input" in record else "question"
    given = [gold for gold in _GOLD if record.get(gold) is not None]
    answers = _list_texts(record, given[0] if given else _GOLD[0], place)
    question = Question("", get_filled(record, name, place), answers, {})
    source = int(record.get("answer") is None)
    contexts = [
        Context(Passage("", "", text), grade)
        for field, grade in zip(_CONTEXTS, (1, 0, source, source), strict=True)
        if record.get(field) is not None
        for text in _list_texts(record, field, place)
        if text.strip()
    ]
    return Item(place, question, tuple(contexts))


def _list_texts(record: Mapping[str, Any], name: str, place: Place) -> tuple[str, ...]:
    if isinstance(record.get(name), list):
        return get_texts(record, name, place)
    return (get_text(record, name, place),)
