"""Analysis of texts for BM25: words, and the terms that they count as: stems without stop words."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from rag_jax.data.words import has_unspaced, list_bigrams
from rag_jax.runtime.files import to_json

_VERSION = 2  # of this module's rules
_WORD = re.compile(r"\w+")
_MARK = regex.compile(r"\p{M}")
# Within words: soft hyphens, joiners, and marks of a direction of writing.
_UNSEEN = re.compile("[\u00ad\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# Share of a corpus's words that are English stop words, from which on it is English. English
# passages have 0.23 at least; by word frequencies of 40 other languages, Hungarian has 0.12 and the
# next one 0.053 (docs/library/retrieval.md).
ENGLISH_FROM = 0.16
# Words of two languages are often alike and mean something else, so lists are not shared. English
# has Lucene's short list, as in Elasticsearch and Anserini; the others have Snowball's long ones.
_STOP_WORDS = {
    "danish": "DANISH",
    "dutch": "DUTCH",
    "english": "EN",
    "french": "FRENCH",
    "german": "GERMAN",
    "italian": "ITALIAN",
    "norwegian": "NORWEGIAN",
    "portuguese": "PORTUGUESE",
    "russian": "RUSSIAN",
    "spanish": "SPANISH",
    "swedish": "SWEDISH",
    "turkish": "TURKISH",
}


@dataclass(frozen=True)
class Analysis:
    """What words count as in a language.

    Attributes:
        language: words count as their stems by Snowball's stemmer of this language, and its stop
            words do not count. With "none" every word counts as it is.
    """

    language: str

    def reduce(self, words: Sequence[str]) -> list[str]:
        """The terms that words of `list_words` count as; "" for those that do not count."""
        if self.language == "none":
            return [fold(word) for word in words]
        import Stemmer

        stops = _list_stop_words(self.language)
        stems = Stemmer.Stemmer(self.language).stemWords(words)
        pairs = zip(words, stems, strict=True)
        # Folded last, because stemmers look at accents.
        return ["" if word in stops else fold(stem) for word, stem in pairs]

    def split(self, text: str) -> list[str]:
        """The terms of a text, in its order."""
        return [term for term in self.reduce(list_words(text)) if term]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that the terms of a text depend on."""
        rules: list = [_VERSION, self.language]
        if self.language != "none":
            import Stemmer

            rules += [Stemmer.version(), sorted(_list_stop_words(self.language))]
        return hashlib.sha256(to_json(rules).encode()).hexdigest()


def list_words(text: str) -> list[str]:
    r"""Words of a text in its order: runs of `\w` and of marks on them, without case.

    Marks are accents and the vowel points of Hebrew, Arabic or Hindi. Compatible forms (full-width
    letters, ligatures, decomposed Korean) are equal, and what is not seen (soft hyphens, joiners,
    marks of a direction of writing) is left out. Emoji and punctuation are not words. In
    scripts without spaces (Chinese, Japanese, Thai), every two neighbouring characters are a word,
    as in Lucene's analyser for Chinese and Japanese.
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    text = _UNSEEN.sub("", text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if _MARK.search(text):
        # Python's \w has no marks, so the words are looked for where marks are letters.
        masked = "".join("_" if unicodedata.category(c)[0] == "M" else c for c in text)
        words = [text[found.start() : found.end()] for found in _WORD.finditer(masked)]
    else:
        words = _WORD.findall(text)
    return [part for word in words for part in list_bigrams(word)] if has_unspaced(text) else words


def fold(word: str) -> str:
    """A word without its marks, which questions often omit; "" if it has nothing else."""
    if word.isascii():
        return word
    word = unicodedata.normalize("NFKD", word).casefold()
    return "".join(c for c in word if unicodedata.category(c)[0] != "M").lower()


def split_words(text: str) -> list[str]:
    """The terms of a text in no language: its words without marks."""
    return Analysis("none").split(text)


def count_english(words: Sequence[str]) -> int:
    """Number of words that are English stop words."""
    stops = _list_stop_words("english")
    return sum(word in stops for word in words)


@functools.cache
def _list_stop_words(language: str) -> frozenset[str]:
    # Not imported above, because BM25's package would initialise JAX's devices, too early for
    # `hosts.connect`.
    from bm25s import stopwords

    listed = getattr(stopwords, f"STOPWORDS_{_STOP_WORDS[language]}")
    return frozenset(" ".join(list_words(word)) for word in listed)
