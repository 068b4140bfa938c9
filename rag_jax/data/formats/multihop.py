"""2WikiMultihopQA (Ho et al. 2020, arXiv 2011.01060) and HotpotQA (Yang et al. 2018, 1809.09600).

A question has `id` (or `_id`), `question`, `answer`, `type` and paragraphs. In the published files,
the paragraphs are `context`, a list of pairs of a title and a list of sentences, and
`supporting_facts` is a list of pairs of a title and the number of a sentence. Otherwise, the
paragraphs are `paragraphs`, a list of objects with `title`, `text` and `is_supporting`.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import (
    Context,
    Item,
    check_blank,
    get_filled,
    get_id,
    get_text,
    get_texts,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of 2WikiMultihopQA or HotpotQA."""
    return "question" in record and ("paragraphs" in record or _is_published(record))


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question with its paragraphs. The answer is optional, as in test files.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answer = get_text(record, "answer", place, default="")
    question = Question(
        get_id(record, ["id", "_id"], place),
        get_filled(record, "question", place),
        (answer,) if answer.strip() else (),
        {},
        get_text(record, "type", place, default=""),
    )
    if _is_published(record):
        return Item(place, question, _read_published(record, place))
    if not isinstance(record.get("paragraphs"), list):
        raise BadLineError(f"{place}: paragraphs must be a list of objects")
    return Item(place, question, read_contexts(record, place))


def _is_published(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("context"), list)


def _read_published(record: Mapping[str, Any], place: Place) -> tuple[Context, ...]:
    supporting = {title for title, _ in _list_pairs(record, "supporting_facts", place)}
    contexts = []
    for title, sentences in _list_pairs(record, "context", place):
        # The sentences of HotpotQA start with a space, those of 2WikiMultihopQA do not.
        sentences = get_texts({"sentences": sentences}, "sentences", place)
        text = " ".join(sentence.strip() for sentence in sentences)
        text = check_blank(text, f"paragraph {title!r}", place)
        contexts.append(Context(Passage("", title, text), int(title in supporting)))
    return tuple(contexts)


def _list_pairs(record: Mapping[str, Any], name: str, place: Place) -> list[tuple[str, Any]]:
    values = record.get(name, [])
    are_pairs = isinstance(values, list) and all(
        isinstance(value, list) and len(value) == 2 for value in values
    )
    if not are_pairs:
        raise BadLineError(f"{place}: {name} must be a list of pairs")
    return [(get_text({"title": title}, "title", place), value) for title, value in values]
