"""Answer matching: whether a text contains an answer, compared token by token as in DPR."""

import functools
import unicodedata
from collections.abc import Sequence

import regex

_WORDS = regex.compile(r"\p{N}|\p{L}{4}")  # no article, whatever is around it
# DPR's tokens: runs of letters, digits and marks, or any single other visible character.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@functools.lru_cache(maxsize=65_536)
def split_tokens(text: str) -> str:
    """Returns DPR's tokens of a text in lower case, with one space before and after each token.

    The spaces make token matching a substring search. The text is put into canonical decomposition
    (NFD) first.
    """
    tokens = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return f" {' '.join(tokens).lower()} "


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Returns whether the tokens of any answer occur in the text as a contiguous run.

    The criterion of DPR's retrieval accuracy (Karpukhin et al. 2020, section 5) and of DPR's hard
    negatives, after Chen et al. (2017, "Reading Wikipedia to answer open-domain questions"). An
    answer without tokens never occurs.
    """
    tokens = split_tokens(text)
    return any(answer.strip() and answer in tokens for answer in map(split_tokens, answers))


def is_void(answer: str) -> bool:
    """Returns whether nothing of an answer is left after SQuAD's normalisation, as of "The".

    The normalisation drops articles and punctuation, so no prediction matches such an answer.
    """
    if _WORDS.search(answer):
        return False
    text = unicodedata.normalize("NFKC", answer).lower()
    return {*regex.sub(r"\p{P}|[$+<=>^`|~]", "", text).split()} <= {"a", "an", "the"}
