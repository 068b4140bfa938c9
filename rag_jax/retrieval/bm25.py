"""BM25: lexical search, by the words that questions and passages share."""

import dataclasses
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.words import list_bigrams
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing, show

# The defaults of bm25s (Lù 2024, arXiv 2407.03618): Lucene's BM25 without the rounding of lengths
# (Kamphuis et al. 2020, table 1), k1 and b.
_METHOD, _K1, _B = "lucene", 1.5, 0.75

_PARAMS = "params.index.json"
# What its files say of how an index was built.
_SETTINGS = {
    "method": _METHOD,
    "k1": _K1,
    "b": _B,
    "dtype": "float32",
    "int_dtype": "int32",
    "backend": "numpy",
}
_FILES = {
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    _PARAMS,
}
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, eq=False)
class BM25:
    """BM25 index of a corpus.

    The score of a passage for a question is the sum over the words of the question that occur in
    the passage (repeated words count repeatedly) of

        log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * L / mean L))

    N is the number of passages, n the number of passages with the word, f the frequency of the word
    in this passage, L the number of words of this passage; k1 = 1.5 and b = 0.75. Words are split
    by `split_words`. There are no stop words and there is no stemming: the logarithm gives frequent
    words little weight in any language.

    Indices are made by `build` or `load`. `searcher` is the `bm25s` index, with the score of every
    word in every passage.
    """

    size: int
    searcher: Any = dataclasses.field(repr=False)

    @classmethod
    def build(cls, texts: Iterable[str | tuple[str, str]]) -> "BM25":
        """Builds an index.

        Args:
            texts: strings, or (title, text) pairs. Words of titles and texts have the same weight.
                A text without words has a row and always scores 0. Texts are not kept in memory.

        Raises:
            RagJaxError: there are no texts, or a text is neither a string nor a pair of strings.
        """
        bm25s = _import_bm25s()
        # Words are numbered in the order of first use, so that equal texts give equal files.
        vocabulary: dict[str, int] = {}
        rows = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in split_words(text)]
            for text in _join_pairs(texts, "texts")
        ]
        if not rows:
            raise RagJaxError("texts are empty: the corpus has no passage")
        searcher = bm25s.BM25(method=_METHOD, k1=_K1, b=_B)
        # bm25s divides by the mean length, which is 0 if no text has words.
        with np.errstate(invalid="ignore"):
            searcher.index((rows, vocabulary), create_empty_token=False, show_progress=False)
        return cls(len(rows), searcher)

    def search(
        self, questions: Sequence[str], k: int
    ) -> tuple[list[Float[np.ndarray, "n"]], list[Int[np.ndarray, "n"]]]:
        """The at most `k` passages with the largest scores for each question, largest first.

        Equal scores are in the order of the rows. A passage that shares no word with the question
        has score 0 and is not found, so `n` is smaller than `k` where few passages share one.

        Returns:
            For each question the scores, and the rows as positions in the texts.

        Raises:
            RagJaxError: `k` is not from 1 to `size`, or a question is not a string.
        """
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        questions = list(_join_pairs(questions, "questions"))
        best_scores, best_rows = [], []
        for question in questions:
            words = self.searcher.get_tokens_ids(split_words(question))
            no_score = np.zeros(self.size, np.float32)
            scores = self.searcher.get_scores_from_ids(words) if words else no_score
            rows = _find_best(scores, k)
            best_rows.append(rows)
            best_scores.append(scores[rows])
        return best_scores, best_rows

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder, atomically, and replaces an older index.

        The files are those of `bm25s`: arrays without pickles, and JSON.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        manifest = {"backend": "bm25", "size": self.size}
        write_folder(folder, manifest, lambda f: self.searcher.save(f, show_progress=False))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "BM25":
        """Reads an index that `save` wrote. Every file is compared with its SHA-256 first.

        Raises:
            RagJaxError: the folder holds no BM25 index, or one that is incomplete or altered.
        """
        bm25s = _import_bm25s()
        folder = Path(folder)
        manifest = read_manifest(folder, {"size": int}, ["bm25"])
        check_files(folder, manifest["sha256"], _FILES)
        size = manifest["size"]
        with parsing(folder, "is no index that bm25s can read", "build the index again"):
            _check_params(read_json(folder / _PARAMS))
            searcher = bm25s.BM25.load(folder, show_progress=False)
            if (counted := searcher.scores["num_docs"]) != size:
                raise RagJaxError(
                    f"{folder} has {show(counted)} passages, not the {size} in its manifest: build "
                    "the index again"
                )
            _check_arrays(searcher.scores, searcher.vocab_dict, size)
        return cls(size, searcher)


def _check_params(params: Mapping[str, Any]) -> None:
    """Raises a ValueError unless parameters of `bm25s` are those that `build` sets."""
    for name, value in _SETTINGS.items():
        if params[name] != value:
            raise ValueError(f"{_PARAMS}: {name} is {show(params[name])}, not {value!r}")


def _check_arrays(scores: Mapping[str, Any], vocabulary: Any, size: int) -> None:
    """Raises a ValueError unless an index's arrays form a matrix `[words, size]` of finite scores.

    `bm25s` adds up what the arrays point to, whatever that is.
    """
    data, rows, starts = (scores[name] for name in ("data", "indices", "indptr"))
    kinds = zip((data, rows, starts), "fii", strict=True)
    if any(a.ndim != 1 or a.dtype.kind != kind for a, kind in kinds) or not len(starts):
        raise ValueError("an array is of another kind")
    if starts[0] != 0 or starts[-1] != len(data) or (np.diff(starts) < 0).any():
        raise ValueError("the words' rows do not follow each other")
    if len(rows) != len(data) or rows.min(initial=0) < 0 or rows.max(initial=0) >= size:
        raise ValueError(f"a row is none of the {size} passages")
    if not np.isfinite(data).all():
        raise ValueError("a score is NaN or infinite")
    if not all(type(i) is int and 0 <= i < len(starts) - 1 for i in vocabulary.values()):
        raise ValueError("a word's number is out of range")


def _import_bm25s() -> Any:
    """Imports `bm25s` and silences its log of every step."""
    # A module-level import would initialise JAX's devices, too early for `hosts.connect`.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def split_words(text: str) -> list[str]:
    r"""Words of a text: runs of `\w` (letters, digits, underscores), without case and marks.

    Marks are accents and the vowel points of Hebrew, Arabic or Hindi, which questions often omit.
    Compatible forms (full-width letters, ligatures, decomposed Korean) are equal. Emoji and
    punctuation are not words. In scripts without spaces (Chinese, Japanese, Thai), every two
    neighbouring characters are a word, as in Lucene's analyser for Chinese and Japanese.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text).casefold()
        text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    words = _WORD.findall(text.lower())
    return words if text.isascii() else [part for word in words for part in list_bigrams(word)]


def _join_pairs(texts: Iterable[str | tuple[str, str]], name: str) -> Iterator[str]:
    if isinstance(texts, str):
        raise RagJaxError(f"{name} is one string: pass a list of them")
    for i, text in enumerate(texts):
        parts = text if isinstance(text, tuple | list) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise RagJaxError(f"{name}: entry {i} is neither a string nor a pair of strings")
        yield " ".join(parts)


def _find_best(scores: Float[np.ndarray, "N"], k: int) -> Int[np.ndarray, "n"]:
    """Rows of the up to `k` largest scores above 0, largest first, equal ones in row order."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero((scores >= threshold) & (scores > 0))
    return rows[np.argsort(-scores[rows], kind="stable")[:k]].astype(np.int32)
