"""Answer matching: token by token as in DPR, and SQuAD's normalisation of answers."""

import functools
import re
import unicodedata
from collections.abc import Sequence

import regex

from rag_jax.data.words import space_characters

_WORDS = regex.compile(r"\p{N}|\p{L}{4}")  # no article, whatever is around it
# DPR's tokens: runs of letters, digits and marks, or any single other visible character.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@functools.lru_cache(maxsize=65_536)
def split_tokens(text: str) -> str:
    """Returns DPR's tokens of a text in lower case, with one space before and after each token.

    The spaces make token matching a substring search. The text is put into canonical decomposition
    (NFD) first, without the marks of where a word may be divided. In scripts without spaces, where
    DPR's token is a whole clause, each character is one.
    """
    plain = unicodedata.normalize("NFD", text).replace("\u00ad", "")
    tokens = _TOKEN.findall(space_characters(plain))
    return f" {' '.join(tokens).lower()} "


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Returns whether the tokens of any answer occur in the text as a contiguous run.

    The criterion of DPR's retrieval accuracy (Karpukhin et al. 2020, section 5) and of DPR's hard
    negatives, after Chen et al. (2017, "Reading Wikipedia to answer open-domain questions"). An
    answer without tokens never occurs.
    """
    tokens = split_tokens(text)
    return any(answer.strip() and answer in tokens for answer in map(split_tokens, answers))


@functools.lru_cache(maxsize=65_536)
def normalize_answer(text: str) -> str:
    """Normalises a text as SQuAD's evaluation does.

    Punctuation is defined by Unicode (plus ASCII symbols, as in SQuAD), equivalent characters are
    unified (NFKC) and characters that are not seen left out, so that texts in any script can be
    compared.
    """
    return normalize_text(text, keep_articles=False)


def normalize_text(text: str, *, keep_articles: bool) -> str:
    """Normalises a text as `normalize_answer` does, with or without the English articles."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if not _is_left_out(c))
    if not keep_articles:
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    # lower() may decompose characters again, such as the Turkish dotted capital I.
    return " ".join(unicodedata.normalize("NFC", text).split())


@functools.cache
def _is_left_out(character: str) -> bool:
    """Whether a character is punctuation, or unseen as the marks of a direction of writing."""
    category = unicodedata.category(character)
    # The minus sign as the hyphen that is written for it.
    is_sign = (character.isascii() and category.startswith("S")) or character == "\u2212"
    return category.startswith("P") or category == "Cf" or is_sign


def is_void(answer: str) -> bool:
    """Returns whether nothing of an answer is left after SQuAD's normalisation, as of "The".

    The normalisation drops articles and punctuation; such an answer is compared as it is.
    """
    return _WORDS.search(answer) is None and not normalize_answer(answer)
