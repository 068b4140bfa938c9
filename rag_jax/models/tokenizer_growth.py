"""How long a text is, and a tokenizer can make it, before the library is asked to do it."""

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

from rag_jax.runtime.errors import RagJaxError

_MOST = 100  # times as long, beside what Unicode's normal forms do
# Characters of a text that is tokenised. Without a space, 10 million take 82 s. Cutting a text to
# what `limit` tokens can need would not do: where words are not split first, or the likeliest split
# of a whole word is taken, the last characters can change the first tokens.
_LONGEST = 1_000_000
_LONGEST_WORD = 10_000  # characters; WordPiece takes their square, and known models have 100


def check_growth(core: tokenizers.Tokenizer) -> None:
    """Looks at what a tokenizer replaces in texts, and at the longest word that it divides.

    Each step that replaces, one after the other, multiplies the length of a text.

    Raises:
        ValueError: a text could become very much longer, or a long word would take for ever.
    """
    for part in (core.normalizer, core.decoder):
        if part is not None and (times := _measure(json.loads(part.__getstate__()))) > _MOST:
            raise ValueError(f"it makes texts up to {times:,.0f} times as long, more than {_MOST}")
    longest = getattr(core.model, "max_input_chars_per_word", 0)
    if longest > _LONGEST_WORD:
        raise ValueError(f"a word may have {longest:,} characters, more than {_LONGEST_WORD:,}")


def check_length(text: str) -> None:
    """Raises a RagJaxError if a text is too long to be divided into tokens."""
    if len(text) > _LONGEST:
        raise RagJaxError(
            f"the text {text[:30]!r}... has {len(text):,} characters, more than the limit of "
            f"{_LONGEST:,} for a text of tokens: shorten it, or split it into passages"
        )


def _measure(step: Mapping[str, Any]) -> float:
    """The most times as long as before that a step makes a text of one character or more."""
    times = 1.0
    for below in (*step.get("normalizers", ()), *step.get("decoders", ())):
        times *= _measure(below)
    if step["type"] == "Replace":
        # An expression may match before every character and take none away.
        taken = len(step["pattern"].get("String", ""))
        times *= max(1.0, len(step["content"]) / taken if taken else 1 + len(step["content"]))
    elif step["type"] == "Prepend":
        times *= 1 + len(step["prepend"])
    return times
