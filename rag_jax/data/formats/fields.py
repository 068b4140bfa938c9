"""Checked access to the fields of records, with errors that name the place and the field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

YES_NO = {True: "yes", False: "no"}
TRUTH = {"true": True, "false": False}  # as tables write it, in any case
# What QuAC, RepLiQA and MS MARCO write where there is no answer.
NO_ANSWERS = {"CANNOTANSWER", "UNANSWERABLE", "No Answer Present."}

_WITHOUT_TEXT = {"id", "_id", "docid", "title", "url", "metadata"}


@dataclass(frozen=True)
class Context:
    """Passage that comes with a question.

    Attributes:
        passage: with an empty id if the data has none.
        grade: relevance; 0 if the passage is not known to be relevant.
        score: from a search; None if the data has none.
        is_negative: whether the data names the passage as a wrong one to train with.
        is_article: whether the title alone names the passage.
    """

    passage: Passage
    grade: int = 0
    score: float | None = None
    is_negative: bool = False
    is_article: bool = False


@dataclass(frozen=True)
class Item:
    """Question from a file, before the relevant passages are looked up in the corpus.

    Attributes:
        question: with an empty id if the data has none.
        contexts: passages that come with the question.
        pages: names of relevant pages, or of paragraphs as `<page>#<number>`, in KILT.
        titles: titles of relevant articles that do not come with the question.
        evidence: titles or ids of relevant pages of the dataset's own corpus, which the corpus may
            lack.
        split: of the question; None if the file's name tells the split.
    """

    place: Place
    question: Question
    contexts: tuple[Context, ...] = ()
    pages: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    split: str | None = None


def get_text(
    record: Mapping[str, Any], name: str, place: Place, *, default: str | None = None
) -> str:
    """Returns the string in a field, or the default if missing or null; None makes it required.

    Raises:
        BadLineError: if a required field is missing, or the value is not a string.
    """
    value = default if record.get(name) is None else record[name]
    if value is None:
        others = "" if name in record else shorten(", ".join(record))
        raise BadLineError(f"{place}: has no {name!r}{others and f' (its fields: {others})'}")
    return _check_text(value, name, place)


def get_filled(record: Mapping[str, Any], name: str, place: Place) -> str:
    """Returns the string in a required field; a BadLineError if missing, blank or no string."""
    return check_blank(get_text(record, name, place), name, place)


def get_id(
    record: Mapping[str, Any], names: Sequence[str], place: Place, *, default: str | None = None
) -> str:
    """Returns the id in the first of several fields, a string or a whole number, as a string.

    Without any of the fields, returns the default; None makes an id required.

    Raises:
        BadLineError: if a required id is missing, or an id is empty or neither a string nor whole.
    """
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None and default is not None:
        return default
    name = name or names[0]
    if type(value := _round(record.get(name))) is int:
        return str(value)
    id = get_text(record, name, place)
    if not id:
        raise BadLineError(f"{place}: {name} is empty")
    return id


def get_texts(record: Mapping[str, Any], name: str, place: Place) -> tuple[str, ...]:
    """Returns the list in a required field; a BadLineError if missing or not a list of strings."""
    values = record.get(name)
    if values is None:
        raise BadLineError(f"{place}: has no {name!r}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BadLineError(f"{place}: {name} must be a list of strings")
    return tuple(_check_text(value, name, place) for value in values)


def join_sentences(record: Mapping[str, Any], name: str, place: Place) -> str:
    """Returns the text of the sentences in a required field; a BadLineError as `get_texts`.

    HotpotQA's sentences begin with a space, those of 2WikiMultihopQA do not.
    """
    return " ".join(sentence.strip() for sentence in get_texts(record, name, place))


def get_answers(record: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    """Returns the answers in `answer` and `answer_aliases`, without blanks.

    Both fields are optional; `answer` is a string, a list, or true or false, for yes or no. A
    question that is marked as impossible to answer has no answers.

    Raises:
        BadLineError: if a field has the wrong type.
    """
    if isinstance(record.get("answer"), list):
        answers = list(get_texts(record, "answer", place))
    elif isinstance(record.get("answer"), bool):
        answers = [YES_NO[record["answer"]]]
    else:
        answers = [get_text(record, "answer", place, default="")]
    if record.get("answer_aliases") is not None:
        answers += get_texts(record, "answer_aliases", place)
    if is_impossible(record):
        return ()
    return tuple(dict.fromkeys(answer for answer in answers if answer.strip()))


def is_impossible(record: Mapping[str, Any]) -> bool:
    """Returns whether a question is marked as one that its passages do not answer.

    SQuAD 2 has `is_impossible`, and MuSiQue `answerable`, both of which may be written out, as in a
    table.
    """
    impossible, answerable = record.get("is_impossible"), record.get("answerable")
    return str(impossible).lower() == "true" or str(answerable).lower() == "false"


def get_choices(choices: Mapping[str, Any], place: Place) -> dict[str, str]:
    """Returns the texts of choices by label; a BadLineError if a label or a text is no string."""
    return {
        _check_text(label, "label", place): get_text({"choice": text}, "choice", place)
        for label, text in choices.items()
    }


def get_objects(record: Mapping[str, Any], name: str, place: Place) -> list[dict[str, Any]]:
    """Returns the objects in a field, none if missing or null; a BadLineError if not a list."""
    values = record.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise BadLineError(f"{place}: {name} must be a list of objects")
    return values


def get_count(record: Mapping[str, Any], name: str, place: Place) -> int | None:
    """Returns the non-negative integer in a field; None if the field is missing, null or empty.

    Decimal digits are accepted too, because the values of tables are strings, and so is `12.0`, as
    pandas writes the numbers of a column with gaps.

    Raises:
        BadLineError: if the value is not an integer, or negative.
    """
    value = _round(record.get(name))
    if value is None or value == "":
        return None
    digits = value.removesuffix(".0") if isinstance(value, str) else ""
    if digits.isascii() and digits.isdecimal() and len(digits) < 20:
        value = int(digits)
    if type(value) is not int or value < 0:
        raise BadLineError(f"{place}: {name}={value!r} must be a non-negative integer")
    return value


def _round(value: Any) -> Any:
    """A float that is a whole number as an integer: pandas has no others in columns with gaps."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def get_passage_text(record: Mapping[str, Any], name: str, title: str, place: Place) -> str:
    """Returns the text of a passage, which may be blank or missing if the passage has a title.

    Raises:
        BadLineError: if a text is missing, see `default_text`, text and title are both blank, or
            the text is not a string.
    """
    text = get_text(record, name, place, default=default_text(record, name, title))
    return text if title.strip() else check_blank(text, name, place)


def default_text(record: Mapping[str, Any], name: str, title: str) -> str | None:
    """Returns the text of a passage whose field of the text is missing or null; None to refuse it.

    A title may stand alone. Beside another field that may be the text, by another name.
    """
    is_alone = name in record or record.keys() <= _WITHOUT_TEXT
    return "" if title.strip() and is_alone else None


def check_blank(text: str, name: str, place: Place) -> str:
    """Returns a text unchanged; a BadLineError with the text's name if the text is blank."""
    if not text.strip():
        raise BadLineError(f"{place}: {name} is blank")
    return text


def _check_text(value: Any, name: str, place: Place) -> str:
    if not isinstance(value, str):
        raise BadLineError(f"{place}: {name}={shorten(repr(value))} must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadLineError(
            f"{place}: {name} holds half a surrogate pair, which UTF-8 cannot encode"
        ) from None
    return value


def shorten(text: str) -> str:
    """Returns a text of at most 60 characters, the last three for what is left out."""
    return text if len(text) <= 60 else f"{text[:57]}..."
