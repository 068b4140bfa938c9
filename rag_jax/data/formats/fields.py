"""Fields of records, and what is told of one that is missing or of another kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


@dataclass(frozen=True)
class Context:
    """A passage that comes with a question; its id is empty where the data has none.

    `grade` is above 0 where it is known to be relevant; `score` is what a search gave it.
    """

    passage: Passage
    grade: int = 0
    score: float | None = None


@dataclass(frozen=True)
class Item:
    """A question as a file has it, with its passages where it has some.

    `pages` are what KILT names as relevant, pages or paragraphs of them.
    """

    place: Place
    question: Question
    contexts: tuple[Context, ...] = ()
    pages: tuple[str, ...] = ()


def get_text(
    record: Mapping[str, Any], name: str, place: Place, *, default: str | None = None
) -> str:
    """A text; `default`, if there is one, where the record has none.

    Raises:
        BadLineError: there is none, or it is no text.
    """
    value = record.get(name)
    if value is None:
        value = default
    if value is None:
        raise BadLineError(f"{place}: has no {name!r}")
    return _check_text(value, name, place)


def get_filled(record: Mapping[str, Any], name: str, place: Place) -> str:
    """A text that is not blank.

    Raises:
        BadLineError: there is none, or it is blank or no text.
    """
    return check_blank(get_text(record, name, place), name, place)


def get_id(
    record: Mapping[str, Any], names: Sequence[str], place: Place, *, default: str | None = None
) -> str:
    """The id, a text or a whole number, under the first of the names that the record has.

    Args:
        default: the id where it has none of them.

    Raises:
        BadLineError: there is none, or it is empty.
    """
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        if default is not None:
            return default
        name = names[0]
    value = record.get(name)
    if type(value) is int:
        return str(value)
    id = get_text(record, name, place)
    if not id:
        raise BadLineError(f"{place}: {name} is empty")
    return id


def get_texts(record: Mapping[str, Any], name: str, place: Place) -> tuple[str, ...]:
    """A list of texts.

    Raises:
        BadLineError: there is none, or not all are texts.
    """
    values = record.get(name)
    if values is None:
        raise BadLineError(f"{place}: has no {name!r}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadLineError(f"{place}: {name} must be a list of texts")
    return tuple(_check_text(value, name, place) for value in values)


def get_choices(choices: Mapping[str, Any], place: Place) -> dict[str, str]:
    """The texts of choices by label.

    Raises:
        BadLineError: a label or what is under it is no text.
    """
    return {
        _check_text(label, "label", place): get_text({"choice": text}, "choice", place)
        for label, text in choices.items()
    }


def get_objects(record: Mapping[str, Any], name: str, place: Place) -> list[dict[str, Any]]:
    """A list of objects, empty where the record has none.

    Raises:
        BadLineError: it is something else.
    """
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadLineError(f"{place}: {name} must be a list of objects")
    return values


def get_count(record: Mapping[str, Any], name: str, place: Place) -> int | None:
    """A whole number, which tables have as text; None where the record has none.

    Raises:
        BadLineError: it is something else, or below 0.
    """
    value = record.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    if type(value) is not int or value < 0:
        raise BadLineError(f"{place}: {name}={value!r} must be a whole number, and not below 0")
    return value


def check_blank(text: str, name: str, place: Place) -> str:
    """The text.

    Raises:
        BadLineError: it is blank.
    """
    if not text.strip():
        raise BadLineError(f"{place}: {name} is blank")
    return text


def _check_text(value: Any, name: str, place: Place) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{place}: {name}={_shorten(value)} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLineError(
            f"{place}: {name} holds half a surrogate pair, which is no text"
        ) from None
    return value


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
