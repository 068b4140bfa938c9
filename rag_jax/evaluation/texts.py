"""Texts as metrics compare them: pairs in one normalisation, and words in any script."""

import contextlib
import os
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import regex

from rag_jax.data.matching import normalize_answer, normalize_text
from rag_jax.data.words import UNSPACED, space_characters
from rag_jax.runtime.errors import RagJaxError

# In scripts without spaces each character is a word, as in sacrebleu's tokenizer for Chinese.
_WORD = regex.compile(rf"(?V1){UNSPACED}|(?:(?!{UNSPACED})[\p{{L}}\p{{N}}\p{{M}}])+")
# Punctuation outside ASCII, but not inside a word, where it is an apostrophe or a hyphen.
_MARK = regex.compile(
    r"(?V1)(?<![\p{L}\p{N}])[\p{P}--\p{ASCII}]|[\p{P}--\p{ASCII}](?![\p{L}\p{N}])"
)

# "No" before a noun is no verdict: it is one before punctuation, or where a clause begins.
_AFTER_NO = (
    r"it|he|she|they|there|this|that|these|those|we|you|i|because|since|as|but|and|according|"
    r"the|an?|its|his|her|their|our|my|your|is|was"
)
NO = rf"\bno\b(?=\s*(?:[^\w\s]|\n|\Z)|\s+(?:{_AFTER_NO})\b)"


def drop_thoughts(text: str) -> str:
    """What a model says once it has thought, after `</think>`.

    Nothing is left of a thought that does not end.
    """
    _, end, said = text.rpartition("</think>")
    return "" if not end and text.lstrip().startswith("<think>") else said


def normalize_pair(prediction: str, answer: str) -> tuple[str, str]:
    """Normalises a prediction and an answer in the same way, which leaves something of the answer.

    Of an answer such as "A" or "The" the usual normalisation leaves nothing, so that every empty
    prediction would equal it. Articles are kept then, and of an answer that is nothing but
    punctuation, such as "!!!", the punctuation.
    """
    for normalize in (normalize_answer, _keep_articles, _keep_all):
        if words := normalize(answer):
            return normalize(prediction), words
    return normalize_answer(prediction), ""


def _keep_articles(text: str) -> str:
    return normalize_text(text, keep_articles=True)


def _keep_all(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def list_words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, digits and marks in any script.

    In scripts without spaces (Chinese, Japanese, Thai and others) each character is a word. Words
    of ASCII are those of `rouge_score`.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def space_words(text: str) -> str:
    """A text with spaces where a tokenizer that looks for spaces and ASCII punctuation needs them.

    Spaces are put around the characters of scripts without spaces and around punctuation outside
    ASCII. A text in ASCII stays as it is.
    """
    if text.isascii():
        return text
    text = space_characters(unicodedata.normalize("NFKC", text))
    return _MARK.sub(r" \g<0> ", text)


def best_score(score: Callable[[str], float], answers: Sequence[str]) -> float:
    """The highest score with any of the answers.

    Raises:
        RagJaxError: there are no answers.
    """
    if isinstance(answers, str):
        raise TypeError("answers must be a sequence of strings, not a string")
    if not answers:
        raise RagJaxError("answers: a question without answers cannot be scored")
    return max(map(score, answers))


@contextlib.contextmanager
def home_folder() -> Iterator[None]:
    """Names a home folder while `nltk` is imported, where there is none.

    `nltk` looks for one, and fails in a container with a user id of its own. It needs no file from
    there.
    """
    if os.path.expanduser("~/") != "~/":
        yield
        return
    os.environ["HOME"] = tempfile.gettempdir()
    try:
        yield
    finally:
        del os.environ["HOME"]
