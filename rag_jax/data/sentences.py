"""Splitting of texts into sentences."""

import re


def list_sentences(text: str) -> list[str]:
    """Splits a text into sentences.

    A sentence ends with `.`, `!` or `?` before white space and a capital letter or a digit.

    Returns:
        The sentences, with runs of white space replaced by single spaces; `[""]` for a blank text.
    """
    return re.split(r"(?<=[.!?])\s+(?=[^\Wa-z_])", " ".join(text.split()))
