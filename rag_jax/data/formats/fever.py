"""FEVER's claims (Thorne et al. 2018, arXiv 1803.05355), as published.

A claim has `id`, `claim`, `label` and `evidence`, a list of sets of evidence: lists of annotation,
evidence, page and sentence. The choices are true, false and unknown, for the labels SUPPORTS,
REFUTES and NOT ENOUGH INFO. Test files have neither label nor evidence. Hugging Face's rows, one
for each piece of evidence, are refused.

The pages of the evidence are relevant where the corpus has them, by id or by title, however Unicode
composes their letters. FEVER writes a title with underscores for spaces and `-LRB-` for brackets. A
page of FEVER's own corpus has `id`, the title in that spelling, `text` and `lines`; one with
neither id nor text, as the first of FEVER's files, is left out.
"""

import unicodedata
from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_filled, get_id, get_text
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question

_LABELS = {"SUPPORTS": "true", "REFUTES": "false", "NOT ENOUGH INFO": "unknown"}
_CHOICES = {choice: label for label, choice in _LABELS.items()}
_ESCAPES = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":", "_": " "}


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a claim of FEVER."""
    others = {"label", "verifiable"} & record.keys()
    return {"id", "claim"} <= record.keys() and (bool(others) or len(record) == 2)


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a claim as a question.

    Raises:
        BadLineError: if a field is missing, blank or of the wrong type, or the label is unknown.
    """
    if "evidence_wiki_url" in record:
        raise BadLineError(
            f"{place}: is one piece of evidence, as in Hugging Face's rows of FEVER, whose claims "
            "are spread over rows: take the file that FEVER published"
        )
    label = get_text(record, "label", place, default="")
    if label and label not in _LABELS:
        raise BadLineError(f"{place}: label {label!r} must be one of {', '.join(_LABELS)}")
    question = Question(
        get_id(record, ["id"], place),
        f"True, false or unknown? {get_filled(record, 'claim', place)}",
        (_LABELS[label],) if label else (),
        {},
        choices=_CHOICES,
    )
    pages = [
        unicodedata.normalize(form, name)
        for page in _list_pages(record, place)
        for name in (page, _unescape(page))
        for form in ("NFC", "NFD")
    ]
    return Item(place, question, read_contexts(record, place), evidence=tuple(dict.fromkeys(pages)))


def matches_page(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a page of FEVER's corpus."""
    return {"id", "text", "lines"} <= record.keys()


def parse_page(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """Parses a page. Many pages have a title and no text.

    Raises:
        BadLineError: if a text has no id, or a field has the wrong type.
    """
    if record["id"] == record["text"] == "":
        return []
    id = get_id(record, ["id"], place)
    return [Passage(id, _unescape(id), get_text(record, "text", place).strip())]


def _unescape(page: str) -> str:
    """Returns the title of a page as Wikipedia writes it."""
    for escaped, character in _ESCAPES.items():
        page = page.replace(escaped, character)
    return page


def _list_pages(record: Mapping[str, Any], place: Place) -> list[str]:
    pages = []
    sets = [] if record.get("evidence") is None else record["evidence"]
    for group in sets if isinstance(sets, list) else [None]:
        for sentence in group if isinstance(group, list) else [None]:
            if not isinstance(sentence, list) or len(sentence) != 4:
                raise BadLineError(f"{place}: evidence must be a list of lists of lists of 4")
            if sentence[2] is not None:
                pages.append(get_text({"page": sentence[2]}, "page", place))
    return pages
