"""Choices of multiple-choice questions, and the labels that answers name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rag_jax.data.formats.fields import get_choices, get_texts
from rag_jax.data.formats.lines import BadLineError, Place

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def label_choices(texts: Any, place: Place) -> dict[str, str]:
    """Returns the texts of a list of choices by the labels A, B and so on.

    Labels that all texts begin with, as in "A)2" and "(B) 3", are left out.

    Raises:
        BadLineError: if the choices are not a list of 1 to 26 strings.
    """
    listed = get_texts({"choices": texts}, "choices", place)
    if not 1 <= len(listed) <= len(_LETTERS):
        raise BadLineError(f"{place}: choices must be a list of 1 to {len(_LETTERS)} strings")
    labelled = list(zip(_LETTERS, listed, strict=False))
    marks = [_match_mark(label, text) for label, text in labelled]
    if all(marks):
        listed = [text[mark.end() :].strip() for text, mark in zip(listed, marks, strict=True)]
    return dict(zip(_LETTERS, listed, strict=False))


def _match_mark(label: str, text: str) -> re.Match[str] | None:
    """A label before a choice's text, as "(B)" or "B)"."""
    label = re.escape(label)
    return re.match(rf"\({label}\)|{label}[).:]", text)


def pair_choices(labels: Iterable[Any], texts: Iterable[Any], place: Place) -> dict[str, str]:
    """Returns the texts of choices by label.

    Raises:
        BadLineError: if two choices have the same label, or a label or a text is no string.
    """
    pairs = [
        (str(label) if type(label) is int else label, text)
        for label, text in zip(labels, texts, strict=True)
    ]
    for number, (label, _) in enumerate(pairs):
        if not isinstance(label, str) or label in [other for other, _ in pairs[:number]]:
            raise BadLineError(f"{place}: label {label!r} must be a string, of one choice only")
    return get_choices(dict(pairs), place)


def rename_labels(choices: Mapping[str, str]) -> dict[str, str]:
    """Returns new labels by old label: letters for numbers that count from 0 or 1."""
    for first in "01":
        numbers = [str(int(first) + i) for i in range(min(len(choices), len(_LETTERS)))]
        if sorted(choices, key=lambda label: (len(label), label)) == numbers:
            return dict(zip(numbers, _LETTERS, strict=False))
    return {label: label for label in choices}


def find_label(choices: Mapping[str, str], index: int, place: Place) -> str:
    """Returns the label of the choice with a number, counted from 0.

    Raises:
        BadLineError: if there is no choice with the number.
    """
    if not 0 <= index < len(choices):
        raise BadLineError(f"{place}: there is no choice {index} among {len(choices)}")
    return list(choices)[index]


def are_labels(answers: Iterable[str], texts: Sequence[Any]) -> bool:
    """Returns whether all answers are labels that `label_choices` gives to a list of choices."""
    return {*answers} <= {*_LETTERS[: len(texts)]}


def name_answer(choices: Mapping[str, str], answer: str, place: Place) -> str:
    """Returns the label of the choice that an answer is, by its label or its text.

    Raises:
        BadLineError: if it is neither.
    """
    if answer in choices:
        return answer
    label = next((label for label, text in choices.items() if text == answer), None)
    if label is None:  # the label that `label_choices` leaves out may stand before the text
        marks = {label: _match_mark(label, answer) for label in choices}
        marked = (x for x, m in marks.items() if m and answer[m.end() :].strip() == choices[x])
        label = next(marked, None)
    if label is None:
        raise BadLineError(f"{place}: answer {answer!r:.60} is neither label nor text of a choice")
    return label


def list_choices(question: str, choices: Mapping[str, str]) -> str:
    """Returns a question with one line per choice, such as `B: text of the choice`."""
    return "\n".join([question, *(f"{label}: {text}" for label, text in choices.items())])
