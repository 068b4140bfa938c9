"""KILT's files (Petroni et al. 2021, arXiv 2009.02252).

A page of the knowledge source has `wikipedia_id`, `wikipedia_title` and `text`, a list whose first
entry is the title; each other one that is neither blank nor a heading is a passage, named
`<page>#<number of the entry>`. A question has `id`, `input` and `output`, a list of objects with
`answer` and `provenance`, whose objects name a page and the first and last of its paragraphs.
Predictions are questions whose output is the answer given and the passages read for it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats.fields import (
    Item,
    get_count,
    get_filled,
    get_id,
    get_objects,
    get_text,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import write_jsonl

_HEADING, _BULLET = "Section::::", "BULLET::::"
_MOST = 10_000  # paragraphs of one provenance
_PARAGRAPH = re.compile(r"(.+)#(0|[1-9][0-9]{0,8})", re.DOTALL)


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is a question."""
    return {"id", "input"} <= record.keys()


def matches_page(record: Mapping[str, Any]) -> bool:
    """Whether a record is a page."""
    return "wikipedia_title" in record and isinstance(record.get("text"), list)


def parse_passage(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """The passages of a page."""
    page = get_id(record, ["wikipedia_id", "_id"], place)
    title = get_text(record, "wikipedia_title", place)
    entries = record["text"]
    if not all(isinstance(entry, str) for entry in entries):
        raise BadLineError(f"{place}: text must be a list of texts")
    passages = []
    for number, entry in enumerate(entries):
        text = get_text({"text": entry}, "text", place).strip()
        text = text.removeprefix(_BULLET).removeprefix("-").strip()
        if number and text and not text.startswith(_HEADING):
            passages.append(Passage(f"{page}#{number}", title, text))
    return passages


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """A question, with what all its outputs give as their provenance."""
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
    first = get_count(span, "start_paragraph_id", place)
    if first is None:
        return [page]
    last = get_count(span, "end_paragraph_id", place)
    last = first if last is None else last
    if not first <= last < first + _MOST:
        raise BadLineError(f"{place}: paragraphs {first} to {last} are no span")
    return [f"{page}#{number}" for number in range(first, last + 1)]


def group_pages(ids: Iterable[str]) -> dict[str, list[str]]:
    """The ids of passages by their page."""
    pages = defaultdict(list)
    for id in ids:
        pages[id.rpartition("#")[0]].append(id)
    return dict(pages)


def find_passages(names: Iterable[str], pages: Mapping[str, list[str]]) -> list[str]:
    """The passages that a provenance names: of a page all, of paragraphs those that are there."""
    found = {}
    for name in names:
        page = pages.get(name.rpartition("#")[0], ())
        found |= dict.fromkeys(pages.get(name, [name] if name in page else []))
    return list(found)


def write_predictions(
    path: Path,
    questions: Sequence[Question],
    answers: Sequence[str],
    ranked: Sequence[Sequence[Passage]],
) -> None:
    """Writes answers, and the passages behind them, as KILT's evaluation reads them.

    Args:
        answers: one to each question.
        ranked: the passages for each, best first. What is not named as a paragraph of a page is
            named as a page.
    """
    write_jsonl(
        path,
        (
            {
                "id": question.id,
                "input": question.question,
                "output": [
                    {"answer": answer, "provenance": [_name_passage(passage) for passage in found]}
                ],
            }
            for question, answer, found in zip(questions, answers, ranked, strict=True)
        ),
    )


def _name_passage(passage: Passage) -> dict[str, Any]:
    named = _PARAGRAPH.fullmatch(passage.id)
    if named is None:
        return {"wikipedia_id": passage.id, "title": passage.title}
    paragraph = int(named[2])
    return {
        "wikipedia_id": named[1],
        "title": passage.title,
        "start_paragraph_id": paragraph,
        "end_paragraph_id": paragraph,
    }
