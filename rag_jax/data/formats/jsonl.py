"""Plain JSON lines: passages, and questions with answers.

A passage has `id` (or `_id`, in BEIR, or `docid`, in Tevatron), `text`, which may be a list of
sentences as in HotpotQA's corpus, and optionally `title`. A passage with a title may have no text,
and a document of BEIR may have neither: it keeps its row. A question has `question`, `answers` and
optionally `id` (or `ID`, `question_id` or `qid`), `passage_id` (the gold passage), `type` and
`popularity`. `answer`, a string, a list of strings as in NQ-open (Lee et al. 2019, arXiv
1906.00300), or true or false for yes or no, and `answer_aliases` stand for `answers`. In a table, a
list is as Python or JSON writes it, and true and false, which may be words there, are answers too.
A question without an id gets one made of its text.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats import dpr
from rag_jax.data.formats.fields import (
    NO_ANSWERS,
    TRUTH,
    YES_NO,
    Item,
    check_blank,
    default_text,
    get_answers,
    get_count,
    get_filled,
    get_id,
    get_text,
    get_texts,
    is_impossible,
    join_sentences,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.formats.tables import is_table
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import write_jsonl

# Fields without which an answer has no meaning, and with them those that are its passage.
OPTIONS = {"choices", "choice", "options", "option", "correct_answer_id"}
PARAGRAPHS = ("context", "passage")  # read by `squad`, `arc` and `tfds`
_OTHERS = {*OPTIONS, *PARAGRAPHS, "article"}
_IDS = ("id", "ID", "question_id", "qid")
_READ = {"question", "answers", "answer", "answer_aliases", "passage_id", "type", "popularity"}
_FIELDS = {*_IDS, *_READ, "is_impossible", "answerable"}  # all that are read of a question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question."""
    return "question" in record and names_answer(record) and not _list_others(record)


def check_plain(record: Mapping[str, Any], place: Place) -> None:
    """Raises a BadLineError if a question has a field that another format reads.

    A file's format is that of its first record, and a later one may have more.
    """
    if others := _list_others(record):
        raise BadLineError(
            f"{place}: has {others[0]!r}, unlike the plain questions that the file is read as: "
            "move it to another file, or set config.data.format=jsonl to leave the field out"
        )


def list_unread(record: Mapping[str, Any]) -> set[str]:
    """The fields of a question that are not read."""
    return {name for name, value in record.items() if name and value is not None} - _FIELDS


def check_right(record: Mapping[str, Any], place: Place) -> None:
    """Raises a BadLineError for an answer that is not known to be right.

    WikiQA and MultiRC have wrong candidates with label 0 or false, and -1 where it is hidden;
    HaluEval has made-up answers with `hallucination` yes.
    """
    wrong = {"label": ("0", "0.0", "-1", "-1.0", "false"), "hallucination": ("yes",)}
    for name, values in wrong.items():
        if str(record.get(name)).lower() in values and isinstance(record.get("answer"), str):
            raise BadLineError(
                f"{place}: {name} {record[name]!r} calls the answer a wrong one: keep right "
                "answers alone, or remove the field"
            )


def has_options(record: Mapping[str, Any]) -> bool:
    """Returns whether a record has choices, or what stands for them."""
    return any(name in OPTIONS for name in _list_others(record))


def _list_others(record: Mapping[str, Any]) -> list[str]:
    return [name for name in record if name in _OTHERS and record[name] not in (None, [])]


def names_answer(record: Mapping[str, Any]) -> bool:
    """Returns whether a record has a field of answers."""
    return not {"answer", "answers"}.isdisjoint(record)


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    check_right(record, place)
    relevant = {}
    if record.get("passage_id") is not None:
        relevant[get_id(record, ["passage_id"], place)] = 1
    question = Question(
        get_id(record, _IDS, place, default=""),
        get_filled(record, "question", place),
        read_answers(record, place),
        relevant,
        get_text(record, "type", place, default=""),
        get_count(record, "popularity", place),
    )
    return Item(place, question)


def parse_passage(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """Parses a passage.

    Raises:
        BadLineError: if a required field is missing, a field has the wrong type, or text and title
            are blank.
    """
    id = get_id(record, ["id", "_id", "docid"], place)
    title = get_text(record, "title", place, default="")
    if isinstance(record.get("text"), list):
        text = join_sentences(record, "text", place)
    else:
        text = get_text(record, "text", place, default=default_text(record, "text", title))
    if not title.strip() and "_id" not in record:
        check_blank(text, f"the text of passage {id!r}", place)
    return [Passage(id, title, text)]


def read_answers(record: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    """Returns the answers in `answers`, or in `answer`, and in `answer_aliases`.

    Raises:
        BadLineError: if there is no such field, a field has the wrong type, or `answer` is none of
            several `answers`.
    """
    record = dpr.parse_cells(record, ("answer", "answers", "answer_aliases"), place)
    answer, listed = record.get("answer"), record.get("answers")
    if answer is not None and not listed:
        answers = _spell_truth(get_answers(record, place), place)
    else:
        answers = _read_listed(record, place)
        if not {*get_answers({"answer": answer}, place)} <= {*(listed or ())}:
            raise BadLineError(
                f"{place}: answer={answer!r:.40} is not among answers={listed!r:.60}: keep the "
                "field with the right ones"
            )
    return tuple(answer for answer in answers if answer not in NO_ANSWERS)


def _read_listed(record: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    if "answers" not in record and "answer" in record:
        raise BadLineError(f"{place}: answer is null: write [] for a question without one")
    answers = get_texts(record, "answers", place)
    if is_impossible(record):
        return ()
    aliases = record.get("answer_aliases")
    return answers if aliases is None else (*answers, *get_texts(record, "answer_aliases", place))


def _spell_truth(answers: tuple[str, ...], place: Place) -> tuple[str, ...]:
    """Adds yes or no before an answer true or false in a table, where all values are text."""
    if len(answers) != 1 or not is_table(place.path) or answers[0].lower() not in TRUTH:
        return answers
    return (YES_NO[TRUTH[answers[0].lower()]], *answers)


def write_passages(path: Path, passages: Iterable[Passage]) -> None:
    """Writes a corpus; the ids are `_id`, as BEIR's, whose documents may be without any text."""
    write_jsonl(path, ({"_id": p.id, "title": p.title, "text": p.text} for p in passages))
