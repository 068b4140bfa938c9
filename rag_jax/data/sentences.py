"""Sentences of a text."""

import re


def list_sentences(text: str) -> list[str]:
    """All sentences of a text, with single spaces; of a blank text the empty one.

    They end with `.`, `!` or `?` before white space and a capital letter or a digit.
    """
    return re.split(r"(?<=[.!?])\s+(?=[^\Wa-z_])", " ".join(text.split()))
