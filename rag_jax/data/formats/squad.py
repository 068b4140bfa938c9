"""SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250): JSON documents, MRQA's lines, and rows.

A document has articles under `data`. Each paragraph is a passage and the gold passage of the
questions about the paragraph. The title is the title of the article, with spaces for underscores,
here and where answers are an object. A question that cannot be answered (SQuAD 2) has no answers. A
file may hold several documents, one after the other.

A line of MRQA's files (Fisch et al. 2019, arXiv 1910.09753) is a paragraph without a title, whose
questions, `qas`, have `qid` and `answers`, a list of texts. The first line is `header`.

A row is one question about a paragraph, `context` or, in BoolQ (Clark et al. 2019, arXiv
1905.10044), `passage`: `question`, optionally `id` (or `qid`) and `title`, and `answers`, which as
Hugging Face has them are an object with a list `text`, or else as in plain JSON lines (`jsonl`).
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats import jsonl
from rag_jax.data.formats.fields import (
    NO_ANSWERS,
    Context,
    Item,
    get_filled,
    get_id,
    get_objects,
    get_text,
    get_texts,
    is_impossible,
)
from rag_jax.data.formats.json_stream import find_container
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.formats.records import read_items, read_records
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

# The beginning of a list or an object as Python, NumPy or JSON writes it.
_PRINTED = re.compile(r"""\s*(\{\s*['"]|\[\s*(['"\[{]|array\())""")


def holds(path: Path) -> bool:
    """Returns whether a file is a document of SQuAD, or lines of MRQA."""
    key, begun = find_container(path) or ("", [])
    if key == "header":
        return _has_header(path)
    return (
        key == "data"
        and isinstance(begun, list)
        and all(isinstance(article, dict) and "paragraphs" in article for article in begun)
    )


def _has_header(path: Path) -> bool:
    """Whether the first line is MRQA's; of a file that begins with `header`."""
    records = read_records(path, BadLines(sys.maxsize, quiet=True))
    return next((record.keys() for _, record in records), None) == {"header"}


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a row of SQuAD."""
    if "question" not in record or jsonl.has_options(record):
        return False
    if isinstance(record.get("answers"), dict):
        return "context" in record and "text" in record["answers"]
    texts = map(record.get, jsonl.PARAGRAPHS)
    return jsonl.names_answer(record) and any(isinstance(text, str) for text in texts)


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a row, with the paragraph as the gold passage.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answers = record.get("answers")
    title = get_text(record, "title", place, default="")
    if isinstance(answers, dict):
        texts = () if is_impossible(record) else get_texts(answers, "text", place)
        title = title.replace("_", " ")
    else:
        jsonl.check_right(record, place)
        texts = jsonl.read_answers(record, place)
    given = [name for name in jsonl.PARAGRAPHS if record.get(name) is not None]
    name = given[0] if given else "context"
    text = get_filled(record, name, place)
    if _PRINTED.match(text) and text.rstrip().endswith(("]", "}")):
        raise BadLineError(
            f"{place}: {name} is a list or an object printed as text: write the file as JSON lines"
        )
    question = Question(
        get_id(record, ["id", "qid"], place, default=""),
        get_filled(record, "question", place),
        _list_known(texts),
        {},
    )
    return Item(place, question, (Context(Passage("", title, text), 1),))


def read(path: Path, bad: BadLines) -> Iterator[Item]:
    """Yields the questions of a file, each with the paragraph as the gold passage.

    The place of a question is the place of the article, or of the line.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    key, _ = find_container(path) or ("", [])
    if key == "header" and _has_header(path):
        for place, paragraph in read_records(path, bad):
            if "header" not in paragraph:
                with bad:
                    yield from _read_paragraph(paragraph, "", place, bad)
        return
    for place, article in read_items(path, "data"):
        with bad:
            title = get_text(article, "title", place, default="").replace("_", " ")
            if article.get("paragraphs") is None:
                raise BadLineError(f"{place}: has no 'paragraphs'")
            for paragraph in get_objects(article, "paragraphs", place):
                with bad:
                    yield from _read_paragraph(paragraph, title, place, bad)


def _read_paragraph(
    paragraph: Mapping[str, Any], title: str, place: Place, bad: BadLines
) -> Iterator[Item]:
    text = get_filled(paragraph, "context", place)
    context = Context(Passage("", title, text), 1)
    for record in get_objects(paragraph, "qas", place):
        with bad:
            answers = _list_answers(record, place)
            if is_impossible(record):
                answers = ()
            question = get_filled(record, "question", place)
            id = get_id(record, ["id", "qid"], place)
            yield Item(place, Question(id, question, answers, {}), (context,))


def _list_answers(record: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    answers = record.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, str) for answer in answers):
        return _list_known(get_texts(record, "answers", place))
    listed = get_objects(record, "answers", place)
    return _list_known(get_text(answer, "text", place) for answer in listed)


def _list_known(answers: Iterable[str]) -> tuple[str, ...]:
    return tuple(answer for answer in dict.fromkeys(answers) if answer not in NO_ANSWERS)
