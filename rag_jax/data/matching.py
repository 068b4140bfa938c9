"""Whether a text has an answer, by DPR's tokens."""

import functools
import unicodedata
from collections.abc import Sequence

import regex

# DPR's tokens: runs of letters, digits and marks; any other visible character by itself.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@functools.lru_cache(maxsize=65_536)
def split_tokens(text: str) -> str:
    """DPR's tokens of a text, a space before, between and after them.

    They are of the text's canonical decomposition (NFD), in lower case.
    """
    tokens = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return f" {' '.join(tokens).lower()} "


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer's tokens occur in the text one after the other.

    The criterion of DPR's retrieval accuracy (Karpukhin et al. 2020, section 5) and of its hard
    negatives, after Chen et al. (2017, "Reading Wikipedia to answer open-domain questions"). An
    answer without tokens occurs nowhere.
    """
    tokens = split_tokens(text)
    return any(answer.strip() and answer in tokens for answer in map(split_tokens, answers))
