"""2WikiMultihopQA, HotpotQA and MuSiQue (Ho et al. 2020, Yang et al. 2018, Trivedi et al. 2022).

The papers are arXiv 2011.01060, 1809.09600 and 2108.00573. A question has `id` (or `_id`),
`question`, `answer`, optionally `answer_aliases` and `type`, and paragraphs.

- HotpotQA and 2WikiMultihopQA as published: the paragraphs are `context`, a list of pairs of a
  title and a list of sentences, and `supporting_facts` is a list of pairs of a title and the number
  of a sentence; or both are objects of lists, or JSON in strings, as in Hugging Face's `datasets`.
  A title that is not among the paragraphs, as in HotpotQA's fullwiki files, is looked up in the
  corpus, and so is one of which the corpus has another text.
- MuSiQue: the paragraphs are `paragraphs`, a list of objects with `title`, `paragraph_text` (or
  `text`) and `is_supporting`. A question with `answerable` false has no answers, and an id
  that ends in `-unanswerable`, because MuSiQue-Full gives it that of its answerable twin.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Context,
    Item,
    check_blank,
    get_answers,
    get_filled,
    get_id,
    get_text,
    join_sentences,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.formats.records import parse_json
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question with paragraphs."""
    return "question" in record and ("paragraphs" in record or _is_published(record))


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question with its paragraphs. The answer is optional, as in test files.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    end = "-unanswerable" if record.get("answerable") is False else ""
    question = Question(
        get_id(record, ["id", "_id"], place) + end,
        get_filled(record, "question", place),
        get_answers(record, place),
        {},
        get_text(record, "type", place, default=""),
    )
    if _is_published(record):
        contexts, titles = _read_published(record, place)
        return Item(place, question, contexts, titles=titles)
    if not isinstance(record.get("paragraphs"), list):
        raise BadLineError(f"{place}: paragraphs must be a list of objects")
    return Item(place, question, read_contexts(record, place))


def _is_published(record: Mapping[str, Any]) -> bool:
    context = record.get("context")
    if isinstance(context, str):
        return context.startswith("[") and isinstance(record.get("supporting_facts"), str)
    return isinstance(context, list) or (isinstance(context, dict) and "sentences" in context)


def _read_published(
    record: Mapping[str, Any], place: Place
) -> tuple[tuple[Context, ...], tuple[str, ...]]:
    """Returns the paragraphs, and the supporting titles that are not among them."""
    facts = _list_pairs(record, "supporting_facts", "sent_id", place)
    supporting = dict.fromkeys(title for title, _ in facts)
    contexts = []
    for title, sentences in _list_pairs(record, "context", "sentences", place):
        text = join_sentences({"sentences": sentences}, "sentences", place)
        if not title.strip():
            check_blank(text, f"paragraph {title!r}", place)
        grade = int(title in supporting)
        contexts.append(Context(Passage("", title, text), grade, is_article=True))
    own = {context.passage.title for context in contexts}
    return tuple(contexts), tuple(title for title in supporting if title not in own)


def _list_pairs(
    record: Mapping[str, Any], name: str, column: str, place: Place
) -> list[tuple[str, Any]]:
    """Returns a list of pairs, given as such or as an object of the lists `title` and `column`.

    The list may be JSON in a string, as in rows of 2WikiMultihopQA.
    """
    values = [] if record.get(name) is None else record[name]
    if isinstance(values, str):
        values = parse_json(values, place)
    if isinstance(values, dict):
        titles, others = values.get("title"), values.get(column)
        if isinstance(titles, list) and isinstance(others, list) and len(titles) == len(others):
            values = [list(pair) for pair in zip(titles, others, strict=True)]
    are_pairs = isinstance(values, list) and all(
        isinstance(value, list) and len(value) == 2 for value in values
    )
    if not are_pairs:
        raise BadLineError(f"{place}: {name} must be a list of pairs")
    return [(get_text({"title": title}, "title", place), value) for title, value in values]
