"""ARC (Clark et al. 2018, arXiv 1803.05457): questions with three to five choices.

A question has `id`, `question`, `choices` and `answerKey` (or `answer`), a label. The choices are
an object of texts by label, or of a list `label` and a list `text`. In the published files,
`question` is an object with the choices and with the text as `stem`. Labels 1 to 5 become A to E,
as in Self-RAG (Asai et al. 2023).
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Item,
    check_blank,
    get_choices,
    get_id,
    get_objects,
    get_text,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.questions import Question

_LETTERS = dict(zip("12345", "ABCDE", strict=True))


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ARC."""
    return "question" in record and ("choices" in record or isinstance(record["question"], dict))


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question. The text ends with one line per choice, such as `B: text of the choice`.

    Raises:
        BadLineError: if a field is missing, blank, of the wrong type, or the answer no choice.
    """
    published = record.get("question")
    if isinstance(published, dict):
        listed = get_objects(published, "choices", place)
        choices = {get_text(c, "label", place): get_text(c, "text", place) for c in listed}
        stem = get_text(published, "stem", place)
    else:
        choices = _read_choices(record.get("choices"), place)
        stem = get_text(record, "question", place)
    choices = {_LETTERS.get(label, label): text for label, text in choices.items()}
    if not choices:
        raise BadLineError(f"{place}: has no choices")
    key = "answerKey" if "answerKey" in record else "answer"
    label = get_text(record, key, place, default="")
    label = _LETTERS.get(label, label)
    if label and label not in choices:
        raise BadLineError(f"{place}: {key} {label!r} is not the label of a choice")
    lines = [check_blank(stem, "question", place), *(f"{c}: {choices[c]}" for c in choices)]
    id, answers = get_id(record, ["id"], place), (label,) if label else ()
    question = Question(id, "\n".join(lines), answers, {}, choices=choices)
    return Item(place, question, read_contexts(record, place))


def _read_choices(choices: Any, place: Place) -> dict[str, str]:
    if not isinstance(choices, dict):
        raise BadLineError(f"{place}: choices must be an object")
    if choices.keys() == {"label", "text"}:
        labels, texts = choices["label"], choices["text"]
        if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
            raise BadLineError(f"{place}: choices must have as many labels as texts")
        choices = dict(zip(map(str, labels), texts, strict=True))
    return get_choices(choices, place)
