"""WebQuestions (Berant et al. 2013, "Semantic parsing on Freebase from question-answer pairs").

A question has `utterance` and `targetValue`, a list of descriptions in Lisp's notation, such as
`(list (description "Jaxon Bieber") (description Haiti))`. A question has no id, and gets one made
of its text. The folder must contain a file of passages.
"""

import re
from collections.abc import Mapping
from typing import Any

from rag_jax.data.formats.fields import Item, get_filled, get_text
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.questions import Question

# White space before a bare description belongs to it, so that there is one way to read it.
_LIST = re.compile(r"\(list((?:\s*\(description\s(?:\s*\"(?:[^\"\\]|\\.)*\"|[^()\"]+)\))*)\s*\)")
_DESCRIPTION = re.compile(r"\(description\s(?:\s*\"((?:[^\"\\]|\\.)*)\"|([^()\"]+))\)")


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of WebQuestions."""
    return {"utterance", "targetValue"} <= record.keys()


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a field is missing, blank, or of the wrong type, or the target value is not
            a list of descriptions.
    """
    value = get_text(record, "targetValue", place).strip()
    listed = _LIST.fullmatch(value)
    if listed is None:
        raise BadLineError(f"{place}: targetValue {value!r:.60} must be a list of descriptions")
    answers = [
        re.sub(r"\\(.)", r"\1", quoted) or bare.strip()
        for quoted, bare in _DESCRIPTION.findall(listed[1])
    ]
    question = get_filled(record, "utterance", place)
    return Item(place, Question("", question, tuple(dict.fromkeys(answers)), {}))
