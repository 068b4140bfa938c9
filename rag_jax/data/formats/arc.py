"""ARC (Clark et al. 2018, arXiv 1803.05457), and other questions with choices.

A question has `question`, `choices` (or `options`), `answerKey` (or `answer_idx`, `answer`, `label`
as in AGIEval or `correct` as in AQuA-RAT), a label, and optionally `id`. The choices are an object
of texts by label, or of a list `label` and a list `text`; or a list of texts, as in MMLU (Hendrycks
et al. 2021, arXiv 2009.03300), whose answer is a number counted from 0 or a letter. In the
published files of ARC, `question` is an object with the choices and with the text as `stem`; in
Hugging Face's rows of OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789), `question_stem` stands
for `question`. Labels 1 to 5 become A to E, as in Self-RAG (Asai et al. 2023), and so do labels
from 0.

The choices may also be in a field each: `A`, `B` and so on, as in C-Eval, `option_a`, as in
Global-MMLU, or `option1`. In ReClor (Yu et al. 2020, arXiv 2002.04326) they are `answers`, `label`
is the number of the right one, and `context` is the gold passage; so they are wherever `label` or
`correct` is a number that counts several `answers` from 0.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats import dpr
from rag_jax.data.formats.choices import (
    find_label,
    label_choices,
    list_choices,
    pair_choices,
    rename_labels,
)
from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Context,
    Item,
    check_blank,
    get_choices,
    get_filled,
    get_id,
    get_objects,
    get_text,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

_ANSWERS = "answerKey", "answer_idx", "answer", "label", "correct"  # the first that is there
# Fields that hold a choice each, whose last characters are the labels.
_COLUMNS = (
    [*"ABCDEFGHIJ"],
    [f"option_{letter}" for letter in "abcdefghij"],
    [f"option{number}" for number in range(1, 10)],
)


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ARC."""
    has_field = bool({"choices", "options"} & record.keys())
    has_choices = (has_field or _get_choices(record) is not None) and "article" not in record
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
    id = get_id(record, ["id", "id_string"], place, default="")
    question = Question(id, text, answers, {}, choices=choices)
    contexts = read_contexts(record, place)
    if _has_choices_as_answers(record) and record.get("context") is not None:
        context = Passage("", "", get_filled(record, "context", place))
        contexts = (*contexts, Context(context, 1))
    return Item(place, question, contexts)


def _get_choices(record: Mapping[str, Any]) -> Any:
    """Returns the choices as the record has them; None without any."""
    if _has_choices_as_answers(record):
        return record["answers"]
    for name in ("choices", "options"):
        if name in record:
            return record[name]
    for names in _COLUMNS:
        if {*names[:2]} <= record.keys():
            filled = [name for name in names if record.get(name) not in (None, "")]
            return {name[-1].upper(): record[name] for name in filled}
    return None


def _has_choices_as_answers(record: Mapping[str, Any]) -> bool:
    answers, key = record.get("answers"), _find_key(record)
    if not isinstance(answers, list) or {"choices", "options"} & record.keys():
        return False
    if dpr.matches(record):
        return False
    number = record.get(key)
    is_number = type(number) is int and key in ("label", "correct")
    # ReClor's test questions have no label.
    return "id_string" in record or (is_number and len(answers) > 1 and 0 <= number < len(answers))


def _find_key(record: Mapping[str, Any]) -> str:
    """Returns the name of the field that holds the answer."""
    return next((name for name in _ANSWERS if record.get(name) is not None), _ANSWERS[0])


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
    key = _find_key(record)
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
