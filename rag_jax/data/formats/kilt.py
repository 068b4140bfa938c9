"""KILT's files (Petroni et al. 2021, arXiv 2009.02252).

A page of the knowledge source has `wikipedia_id`, `wikipedia_title` and `text`, a list of entries.
The first entry is the title. Every other entry that is neither blank nor a heading is a passage
with the id `<page>#<number of the entry>`. A question has `id`, `input` and `output`, a list of
objects with `answer` and `provenance`. An object of the provenance names a page and optionally the
first and the last paragraph. A prediction is a question with the predicted answer and the retrieved
passages as `output`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rag_jax.data.formats.fields import Item, get_count, get_filled, get_id, get_objects, get_text
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import write_jsonl

_HEADING, _BULLET = "Section::::", "BULLET::::"
_MAX_PARAGRAPHS = 10_000  # per provenance, to bound the memory for a bad line
_PARAGRAPH = re.compile(r"(.+)#(0|[1-9][0-9]{0,8})", re.DOTALL)


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of KILT."""
    is_test = record.keys() <= {"id", "input", "meta"}  # test files have no output
    return {"id", "input"} <= record.keys() and ("output" in record or is_test)


def matches_page(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a page of KILT's knowledge source."""
    return "wikipedia_title" in record and isinstance(_get_entries(record), list)


def _get_entries(record: Mapping[str, Any]) -> Any:
    """A page's paragraphs, which Hugging Face's rows have in an object beside their numbers."""
    text = record.get("text")
    return text.get("paragraph") if isinstance(text, dict) else text


def parse_passage(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """Parses the passages of a page.

    Raises:
        BadLineError: if a required field is missing, or a field has the wrong type.
    """
    page = get_id(record, ["wikipedia_id", "_id"], place)
    title = get_text(record, "wikipedia_title", place)
    entries = _get_entries(record)
    if not all(isinstance(entry, str) for entry in entries):
        raise BadLineError(f"{place}: text must be a list of strings")
    passages = []
    for number, entry in enumerate(entries):
        text = get_text({"text": entry}, "text", place).strip()
        if text.startswith(_BULLET):
            text = text.removeprefix(_BULLET).removeprefix("-").strip()
        if number and text and not text.startswith(_HEADING):
            passages.append(Passage(f"{page}#{number}", title, text))
    return passages


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question, with the answers and the provenance of all outputs.

    Raises:
        BadLineError: if a field is missing, blank, of the wrong type or no range of paragraphs.
    """
    answers, pages = [], []
    for output in get_objects(record, "output", place):
        if output.get("answer") is not None:
            answers.append(get_text(output, "answer", place))
        for span in get_objects(output, "provenance", place):
            pages += _list_passages(span, place)
    question = Question(
        get_id(record, ["id"], place),
        get_filled(record, "input", place),
        tuple(dict.fromkeys(answer for answer in answers if answer.strip())),
        {},
    )
    return Item(place, question, pages=tuple(dict.fromkeys(pages)))


def _list_passages(span: Mapping[str, Any], place: Place) -> list[str]:
    page = get_id(span, ["wikipedia_id"], place)
    # Hugging Face's rows have -1 for a number that is missing.
    given = {name: number for name, number in span.items() if number != -1}
    first = get_count(given, "start_paragraph_id", place)
    if first is None:
        return [page]
    last = get_count(given, "end_paragraph_id", place)
    last = first if last is None else last
    if not first <= last < first + _MAX_PARAGRAPHS:
        raise BadLineError(
            f"{place}: paragraphs {first} to {last} must be a range of 1 to {_MAX_PARAGRAPHS}"
        )
    return [f"{page}#{number}" for number in range(first, last + 1)]


def group_pages(ids: Iterable[str]) -> dict[str, list[str]]:
    """Groups ids of passages by page, which is the part of an id before the last `#`."""
    pages = defaultdict(list)
    for id in ids:
        page, mark, _ = id.rpartition("#")
        if mark:
            pages[page].append(id)
    return dict(pages)


def has_page(name: str, pages: Mapping[str, list[str]], ids: Set[str]) -> bool:
    """Returns whether the page that a provenance names, or its paragraph, is in the corpus.

    Args:
        pages, ids: as in `find_passages`.
    """
    return name in pages or name in ids or name.rpartition("#")[0] in pages


def find_passages(names: Iterable[str], pages: Mapping[str, list[str]], ids: Set[str]) -> list[str]:
    """Returns the ids of the passages that a provenance names, in order, without duplicates.

    Args:
        names: names of pages, or of paragraphs as `<page>#<number>`. A page stands for all its
            passages; a paragraph that is not in the corpus is ignored.
        pages: ids of the passages in the corpus by page; see `group_pages`.
        ids: of all passages in the corpus, of which one without `#` is a page.
    """
    found = {}
    for name in names:
        found |= dict.fromkeys(pages.get(name, [name] if name in ids else []))
    return list(found)


def write_predictions(
    path: Path,
    questions: Sequence[Question],
    answers: Sequence[str],
    ranked: Sequence[Sequence[Passage]],
) -> None:
    """Writes predicted answers and retrieved passages for KILT's evaluation.

    Every question has one answer and passages, best first. A passage with an id of the form
    `<page>#<number>` is written as a paragraph, any other as a page.
    """
    records = (
        {
            "id": question.id,
            "input": question.question,
            "output": [{"answer": answer, "provenance": [_name_passage(p) for p in passages]}],
        }
        for question, answer, passages in zip(questions, answers, ranked, strict=True)
    )
    write_jsonl(path, records)


def _name_passage(passage: Passage) -> dict[str, Any]:
    """Returns a provenance object for a passage."""
    match = _PARAGRAPH.fullmatch(passage.id)
    if match is None:
        return {"wikipedia_id": passage.id, "title": passage.title}
    ends = dict.fromkeys(("start_paragraph_id", "end_paragraph_id"), int(match[2]))
    return {"wikipedia_id": match[1], "title": passage.title, **ends}
