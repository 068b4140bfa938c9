"""MS MARCO's questions (Bajaj et al. 2016, arXiv 1611.09268), with the answers of the NLG task.

A question has `query_id`, `query`, `answers`, `wellFormedAnswers`, `query_type`, which becomes the
type of the question, and `passages`, a list of objects with `passage_text` and `is_selected`, which
marks the relevant ones (1; -1 in the test files, which hide them); or an object of lists, as in
Hugging Face's `datasets`. In Tevatron's files, which MIRACL and Mr. TyDi share, the passages are
`positive_passages` and `negative_passages`, lists of objects with `docid`, `title` and `text`; rows
with `positives`, which name passages by id, are not read. The well-formed answers, which the NLG
task asks for, come before `answers`; "No Answer Present." is no answer.

The published files of version 2.1 are one object of columns, each an object of values by row.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    NO_ANSWERS,
    Context,
    Item,
    get_filled,
    get_id,
    get_objects,
    get_text,
    get_texts,
)
from rag_jax.data.formats.json_stream import JsonStream, NotJsonError, find_container, open_json
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

_COLUMNS = ("query_id", "query", "answers", "wellFormedAnswers", "query_type", "passages")


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of MS MARCO."""
    has_more = bool({"passages", "positive_passages", "answers"} & record.keys())
    return {"query_id", "query"} <= record.keys() and has_more and "positives" not in record


def holds(path: Path) -> bool:
    """Returns whether a file is one object of columns."""
    key, begun = find_container(path) or ("", [])
    return key in _COLUMNS and isinstance(begun, dict) and any(map(str.isdecimal, begun))


def read(path: Path, bad: BadLines) -> Iterator[Item]:
    """Yields the questions of a file of columns.

    The file is read at one position per column at once, so a few rows are in memory.

    Raises:
        RagJaxError: if the file cannot be read, the columns have different rows, or there are too
            many bad lines.
    """
    with contextlib.ExitStack() as stack:
        streams = {name: stack.enter_context(open_json(path)) for name in _COLUMNS}
        columns = {name: _walk_column(stream, name) for name, stream in streams.items()}
        present = {name: column for name, column in columns.items() if next(column)}
        item = 0
        while True:
            rows = {name: next(column, None) for name, column in present.items()}
            item += 1
            place = Place(path, streams["query_id"].line, item)
            if len({row and row[0] for row in rows.values()}) != 1:
                raise NotJsonError(f"{place}: the columns {', '.join(rows)} have different rows")
            if None in rows.values():
                return
            with bad:
                yield parse({name: row[1] for name, row in rows.items() if row}, place)


def _walk_column(stream: JsonStream, name: str) -> Iterator[Any]:
    """Yields whether a document has a column, and then the key and the value of each row.

    One column's stream, the ids', goes on to the end of the file, where nothing may follow.
    """
    has_column = False
    for column in stream.members():
        if column != name:
            stream.skip_value()
            continue
        yield True
        has_column = True
        for key in stream.members():
            yield key, stream.read_value()
        if name != "query_id":
            return
    if not has_column:
        yield False
    elif stream.peek():
        raise NotJsonError(f"{stream.path}:{stream.line}: nothing may follow the columns")


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question, with the passages that come with the question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answers = _list_answers(record, "wellFormedAnswers", place)
    answers = answers or _list_answers(record, "answers", place)
    question = Question(
        get_id(record, ["query_id"], place),
        get_filled(record, "query", place),
        tuple(dict.fromkeys(answers)),
        {},
        get_text(record, "query_type", place, default=""),
    )
    contexts = [
        Context(
            Passage("", "", get_filled(passage, "passage_text", place)),
            int(_is_selected(passage, place)),
        )
        for passage in _list_passages(record, place)
    ]
    return Item(place, question, (*contexts, *read_contexts(record, place)))


def _is_selected(passage: Mapping[str, Any], place: Place) -> bool:
    flag = passage.get("is_selected")
    if flag not in (None, -1, 0, 1):
        raise BadLineError(f"{place}: is_selected={flag!r:.40} must be 0 or 1, or -1 if hidden")
    return flag == 1


def _list_answers(record: Mapping[str, Any], name: str, place: Place) -> list[str]:
    if record.get(name) in (None, "[]"):  # the files of version 2.1 have no list where it is empty
        return []
    answers = get_texts(record, name, place)
    return [answer for answer in answers if answer.strip() and answer not in NO_ANSWERS]


def _list_passages(record: Mapping[str, Any], place: Place) -> list[dict[str, Any]]:
    columns = record.get("passages")
    if not isinstance(columns, dict):
        return get_objects(record, "passages", place)
    texts, selected = columns.get("passage_text"), columns.get("is_selected")
    if not isinstance(texts, list) or not isinstance(selected, list) or len(texts) != len(selected):
        raise BadLineError(f"{place}: passages must have as many is_selected as passage_text")
    pairs = zip(texts, selected, strict=True)
    return [{"passage_text": text, "is_selected": flag} for text, flag in pairs]
