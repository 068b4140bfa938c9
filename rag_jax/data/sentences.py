"""Splitting of texts into sentences."""

import re

_END = re.compile(
    r"(?<=[.!?\u061f\u06d4\u0964\u0965])\s+(?=[^\Wa-z_])"
    # Chinese and Japanese have no spaces; what closes a quotation belongs to the sentence in it.
    r"|(?:(?<=[\u3002\uff01\uff1f\uff61])|(?<=[\u3002\uff01\uff1f\uff61][\u300d\u300f\u201d]))"
    r"\s*(?=[^\s\u3002\uff01\uff1f\uff61\u300d\u300f\u201d\uff09])"
)


def list_sentences(text: str) -> list[str]:
    """Splits a text into sentences with single spaces; `[""]` for a blank text.

    A sentence ends with `.`, `!`, `?` or the Arabic or Indian stop before white space and a capital
    letter, a letter without case or a digit, or with the Chinese and Japanese stops wherever they
    stand. Thai marks no ends of sentences, so a Thai text is one sentence.
    """
    return _END.split(" ".join(text.split()))
