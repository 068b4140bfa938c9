"""Passages that come with a question, in datasets with retrieved or gold passages."""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.fields import (
    Context,
    get_filled,
    get_id,
    get_objects,
    get_passage_text,
    get_text,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage

_IDS = ("id", "passage_id", "psg_id", "docid")
# Grades by field. Passages from a search (`ctxs`) and negatives are not known to be relevant.
_LISTS = {
    **{"positive_ctxs": 1, "negative_ctxs": 0, "hard_negative_ctxs": 0, "ctxs": 0},
    **{"positive_passages": 1, "negative_passages": 0},
}


def read_contexts(record: Mapping[str, Any], place: Place) -> tuple[Context, ...]:
    """Returns the passages of a question from all common fields.

    The fields are DPR's `positive_ctxs`, `negative_ctxs` and `hard_negative_ctxs`; Tevatron's
    `positive_passages` and `negative_passages`; `ctxs`, with scores if a search wrote the list;
    `paragraphs`, with `is_supporting` (and `paragraph_text`, as MuSiQue has it, for `text`); and
    `ctx_title` and `ctx_text`, for a single passage.

    Raises:
        BadLineError: if a passage has neither text nor title, or a field has the wrong type.
    """
    # As in DPR's code, other negatives stand in where there are no hard ones.
    own = "hard_negative_ctxs" if record.get("hard_negative_ctxs") else "negative_ctxs"
    negatives = {own, "negative_passages"}
    contexts = [
        _read_context(fields, place, grade, is_negative=name in negatives)
        for name, grade in _LISTS.items()
        for fields in get_objects(record, name, place)
    ]
    for fields in get_objects(record, "paragraphs", place):
        contexts.append(_read_context(fields, place, int(bool(fields.get("is_supporting")))))
    if record.get("ctx_text") is not None:
        title = get_text(record, "ctx_title", place, default="")
        text = get_filled(record, "ctx_text", place)
        contexts.append(Context(Passage("", title, text)))
    return tuple(contexts)


def _read_context(
    record: Mapping[str, Any], place: Place, grade: int, *, is_negative: bool = False
) -> Context:
    id = get_id(record, _IDS, place, default="")
    title = get_text(record, "title", place, default="")
    name = "paragraph_text" if "paragraph_text" in record else "text"
    text = get_passage_text(record, name, title, place)
    score = record.get("score")
    try:
        value = None if score is None else float(score)  # DPR writes scores as strings
    except (TypeError, ValueError, OverflowError):
        raise BadLineError(f"{place}: score={score!r} must be a number") from None
    return Context(Passage(id, title, text), grade, value, is_negative)
