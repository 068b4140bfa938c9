"""ARC (Clark et al. 2018, arXiv 1803.05457), and other questions with choices.

A question has `question`, `choices` (or `options`, `option`), `answerKey` (or `answer_idx`,
`answer`, `label` as in AGIEval, `correct` as in AQuA-RAT, `answer_index` or `correct_answer`), a
label, and optionally `id`. The choices are an object of texts by label, or of a list `label` and a
list `text`; a list of objects with both; or a list of texts, as in MMLU (Hendrycks et al. 2021,
arXiv 2009.03300), whose answer is a number counted from 0, a letter, or the text. In the published
files of ARC, `question` is an object with the choices and with the text as `stem`; in Hugging
Face's rows of OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789), `question_stem` stands for
`question`. Labels 1 to 5 become A to E, as in Self-RAG (Asai et al. 2023), and so do labels from 0.

The choices may also be in a field each: `A`, `B` and so on, as in C-Eval, `option_a`, as in
Global-MMLU, `Option 1`, `choiceA`, `ending0` and the like. In ReClor (Yu et al. 2020, arXiv
2002.04326) they are `answers`, and `label` is the number of the right one; so they are wherever
`label` or `correct` is a number that counts several `answers` from 0. A paragraph beside them,
`context` as in ReClor or `passage` as in AGIEval, is the gold passage.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats import dpr
from rag_jax.data.formats.choices import (
    find_label,
    label_choices,
    list_choices,
    name_answer,
    pair_choices,
    rename_labels,
)
from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Context,
    Item,
    check_blank,
    get_choices,
    get_id,
    get_objects,
    get_text,
)
from rag_jax.data.formats.jsonl import PARAGRAPHS
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

_LISTS = "choices", "options", "option"
# The first that is there holds the answer; another field with such a name may.
_ANSWERS = "answerKey", "answer_idx", "answer", "label", "correct", "answer_index", "correct_answer"
_ANSWER = re.compile(r"answer|correct|gold|target|truth", re.IGNORECASE)
# A field that holds a choice, and its label. `answer1` may as well be one of several gold answers.
_COLUMN = re.compile(
    r"((?:option|choice|opt|ending)[ _]?)([a-j]|\d)|(answer[ _]?|)([a-j])", re.IGNORECASE
)
_FIRST = ["A", "B"], ["0", "1"], ["1", "2"]


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ARC."""
    has_choices = _get_choices(record) is not None and "article" not in record
    if "question_stem" in record:
        return has_choices
    published = record.get("question")
    if isinstance(published, dict):
        return "stem" in published
    return "question" in record and has_choices


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question. The text ends with one line per choice, such as `B: text of the choice`.

    Raises:
        BadLineError: if a field is missing, blank, of the wrong type, or the answer no choice.
    """
    published = record.get("question")
    if isinstance(published, dict):  # with `stem`
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
    paragraphs = [get_text(record, name, place, default="") for name in PARAGRAPHS]
    gold = [Context(Passage("", "", text), 1) for text in paragraphs if text.strip()]
    return Item(place, question, (*read_contexts(record, place), *gold))


def _get_choices(record: Mapping[str, Any]) -> Any:
    """Returns the choices as the record has them; None without any."""
    if _has_choices_as_answers(record):
        return record["answers"]
    for name in _LISTS:
        if record.get(name) not in (None, []):
            return record[name]
    columns: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, match in ((name, _COLUMN.fullmatch(name)) for name in record):
        if match:
            prefix, label, other_prefix, letter = match.groups()
            columns[prefix or other_prefix][(label or letter).upper()] = record[name]
    for texts in columns.values():
        if sorted(texts)[:2] in _FIRST:
            return texts
    return None


def _has_choices_as_answers(record: Mapping[str, Any]) -> bool:
    answers, key = record.get("answers"), _find_key(record)
    if not isinstance(answers, list) or any(record.get(name) for name in _LISTS):
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
        if choices and all(isinstance(c, dict) and {"label", "text"} <= c.keys() for c in choices):
            return pair_choices(*([c[name] for c in choices] for name in ("label", "text")), place)
        return label_choices(choices, place)
    if not isinstance(choices, dict):
        raise BadLineError(f"{place}: choices must be an object or a list")
    if choices.keys() == {"label", "text"}:
        labels, texts = choices["label"], choices["text"]
        if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
            raise BadLineError(f"{place}: choices must have as many labels as texts")
        return pair_choices(labels, texts, place)
    # Tables and Arrow pad the shorter ones of a column.
    filled = {label: text for label, text in choices.items() if text not in (None, "")}
    return get_choices(filled, place)


def _read_answers(
    record: Mapping[str, Any], choices: Mapping[str, str], names: Mapping[str, str], place: Place
) -> tuple[str, ...]:
    """Returns the label of the right choice, named or written out; none if it is missing.

    Args:
        names: labels by the labels in the record.
    """
    key = _find_key(record)
    if not any(name in record for name in _ANSWERS):  # test files may have no answers
        unknown = (name for name in record if _ANSWER.search(name) and record[name] is not None)
        if (name := next(unknown, None)) and not _has_choices_as_answers(record):
            raise BadLineError(
                f"{place}: has choices and {name!r}, but none of {', '.join(_ANSWERS)}: rename the "
                "field of the right choice to one of them, or remove it"
            )
    if (fault := record.get("error_type")) not in (None, "", "ok"):  # MMLU-Redux
        raise BadLineError(f"{place}: error_type={fault!r:.40}: correct the question, or remove it")

    def read(name: str) -> str:
        answer = record.get(name)
        if type(answer) is int and isinstance(_get_choices(record), list):
            return find_label(choices, answer, place)
        label = str(answer) if type(answer) is int else get_text(record, name, place, default="")
        return name_answer(choices, names.get(label, label), place) if label else ""

    label, others = read(key), {}
    for name in (name for name in _ANSWERS if name != key and record.get(name) is not None):
        with contextlib.suppress(BadLineError):  # a field of this name may mean something else
            others[name] = read(name)
    if other := next((name for name, own in others.items() if own not in ("", label)), None):
        both = f"{key!r} is choice {label}, and {other!r} is choice {others[other]}"
        raise BadLineError(f"{place}: {both}: remove the wrong one")
    return (label,) if label else ()
