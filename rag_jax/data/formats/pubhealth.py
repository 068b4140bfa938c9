"""PubHealth's claims (Kotonya and Toni 2020, arXiv 2010.09926), as a table or as JSON lines.

A claim has `claim_id`, `claim` and `label`. The choices are true and false: claims labelled
`mixture` or `unproven` are left out, as in the split of 987 claims of Self-RAG (Asai et al. 2023).
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_filled, get_id, get_text
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.questions import Question

_CHOICES = {"true": "SUPPORTS", "false": "REFUTES"}  # texts: FEVER's names of the labels
LEFT_OUT = "label mixture or unproven"
_LEFT_OUT = ("mixture", "unproven")


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a claim of PubHealth."""
    return {"claim_id", "claim", "label"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item | None:
    """Parses a claim as a question; returns None if the label is `mixture` or `unproven`.

    Raises:
        BadLineError: if a field is missing, blank or of the wrong type, or the label is unknown.
    """
    label = get_text(record, "label", place).strip().lower()
    if label in _LEFT_OUT:
        return None
    if label not in _CHOICES:
        raise BadLineError(f"{place}: label {label!r} must be true, false, mixture or unproven")
    text = f"True or false? {get_filled(record, 'claim', place)}"
    id = get_id(record, ["claim_id"], place)
    question = Question(id, text, (label,), {}, choices=_CHOICES)
    return Item(place, question, read_contexts(record, place))
