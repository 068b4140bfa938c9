"""ARC (Clark et al. 2018, arXiv 1803.05457), and other questions with choices.

A question has `question`, `choices` (or `options`), `answerKey` (or `answer_idx`, `answer`, `label`
as in AGIEval or `correct` as in AQuA-RAT), a label, and optionally `id`. The choices are an object
of texts by label, or of a list `label` and a list `text`; or a list of texts, as in MMLU (Hendrycks
et al. 2021, arXiv 2009.03300), whose answer is a number counted from 0 or a letter. In the
published files of ARC, `question` is an object with the choices and with the text as `stem`; in
Hugging Face's rows of OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789), `question_stem` stands
for `question`. Labels 1 to 5 become A to E, as in Self-RAG (Asai et al. 2023), and so do labels
from 0.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.choices import (
    find_label,
    label_choices,
    list_choices,
    pair_choices,
    rename_labels,
)
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

_ANSWERS = "answerKey", "answer_idx", "answer", "label", "correct"  # the first that is there


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ARC."""
    has_choices = bool({"choices", "options"} & record.keys()) and "article" not in record
    if "question_stem" in record:
        return has_choices
    return "question" in record and (has_choices or isinstance(record["question"], dict))


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question. The text ends with one line per choice, such as `B: text of the choice`.

    Raises:
        BadLineError: if a field is missing, blank, of the wrong type, or the answer no choice.
    """
    published = record.get("question")
    if isinstance(published, dict):
        listed = get_objects(published, "choices", place)
        labels, texts = ([choice.get(name) for choice in listed] for name in ("label", "text"))
        choices = pair_choices(labels, texts, place)
        stem = get_text(published, "stem", place)
    else:
        choices = _read_choices(_get_choices(record), place)
        name = "question_stem" if "question_stem" in record else "question"
        stem = get_text(record, name, place)
    names = rename_labels(choices)
    choices = {names[label]: text for label, text in choices.items()}
    if not choices:
        raise BadLineError(f"{place}: has no choices")
    answers = _read_answers(record, choices, names, place)
    text = list_choices(check_blank(stem, "question", place), choices)
    id = get_id(record, ["id"], place, default="")
    question = Question(id, text, answers, {}, choices=choices)
    return Item(place, question, read_contexts(record, place))


def _get_choices(record: Mapping[str, Any]) -> Any:
    return record.get("options" if "choices" not in record else "choices")


def _read_choices(choices: Any, place: Place) -> dict[str, str]:
    if isinstance(choices, list):
        return label_choices(choices, place)
    if not isinstance(choices, dict):
        raise BadLineError(f"{place}: choices must be an object or a list")
    if choices.keys() == {"label", "text"}:
        labels, texts = choices["label"], choices["text"]
        if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
            raise BadLineError(f"{place}: choices must have as many labels as texts")
        return pair_choices(labels, texts, place)
    return get_choices(choices, place)


def _read_answers(
    record: Mapping[str, Any], choices: Mapping[str, str], names: Mapping[str, str], place: Place
) -> tuple[str, ...]:
    """Returns the label of the right choice; none if the answer is missing.

    Args:
        names: labels by the labels in the record.
    """
    key = next((name for name in _ANSWERS if record.get(name) is not None), _ANSWERS[0])
    answer = record.get(key)
    if type(answer) is int and isinstance(_get_choices(record), list):
        return (find_label(choices, answer, place),)
    label = str(answer) if type(answer) is int else get_text(record, key, place, default="")
    if not label:
        return ()
    label = names.get(label, label)
    if label not in choices:
        raise BadLineError(f"{place}: {key} {label!r} is not the label of a choice")
    return (label,)
