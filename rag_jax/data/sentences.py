"""Splitting of texts into sentences."""

import re


def list_sentences(text: str) -> list[str]:
    """Splits a text into sentences with single spaces; `[""]` for a blank text.

    A sentence ends with `.`, `!` or `?` before white space and a capital letter or a digit.
    """
    return re.split(r"(?<=[.!?])\s+(?=[^\Wa-z_])", " ".join(text.split()))
