"""PubHealth's claims (Kotonya and Toni 2020, arXiv 2010.09926), as a table or as JSON lines.

A claim has `claim_id`, `claim` and `label`. As in Self-RAG (Asai et al. 2023), whose split is of
987 claims, those labelled as a mixture or unproven are left out: true and false are the choices.
"""

from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_filled, get_id, get_text
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.questions import Question

_CHOICES = {"true": "SUPPORTS", "false": "REFUTES"}  # and what FEVER calls them
_LEFT_OUT = ("mixture", "unproven")


def matches(record: Mapping[str, Any]) -> bool:
    """Whether a record is a claim."""
    return {"claim_id", "claim", "label"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item | None:
    """A claim that is true or false, as a question which of them it is; None for others."""
    label = get_text(record, "label", place).strip().lower()
    if label in _LEFT_OUT:
        return None
    if label not in _CHOICES:
        raise BadLineError(f"{place}: label {label!r} must be true, false, mixture or unproven")
    claim = get_filled(record, "claim", place)
    question = Question(
        get_id(record, ["claim_id"], place),
        f"True or false? {claim}",
        (label,),
        {},
        choices=_CHOICES,
    )
    return Item(place, question, read_contexts(record, place))
