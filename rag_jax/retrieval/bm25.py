"""BM25: search by the words that questions and passages share."""

import dataclasses
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder

# The defaults of bm25s (Lù 2024, arXiv 2407.03618): BM25 as Lucene has it but for the rounding of
# lengths (Kamphuis et al. 2020, table 1), and these two constants.
_METHOD, _K1, _B = "lucene", 1.5, 0.75

_FILES = {
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    "params.index.json",
}
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, eq=False)
class BM25:
    """Word counts of a corpus, searchable by questions.

    A question's score with a passage is, over the question's words (one that comes twice counts
    twice) that are in the passage,

        sum of log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * L / mean L))

    with N passages, n of them with the word, f times in this one, which has L words; k1 = 1.5 and
    b = 0.75. Words are what `split_words` gives; none is left out as a stop word or stemmed: the
    logarithm makes little of frequent words in any language.

    Made by `build` or `load`.

    Attributes:
        size: number of passages, N.
        searcher: the `bm25s` index, with the score of every word in every passage.
    """

    size: int
    searcher: Any = dataclasses.field(repr=False)

    @classmethod
    def build(cls, texts: Iterable[str | tuple[str, str]]) -> "BM25":
        """Counts words.

        Args:
            texts: strings, or (title, text) pairs, whose words count alike. One without any word
                keeps its row and is found last, with score 0. None is kept in memory.

        Raises:
            RagJaxError: no texts, `texts` is one string, or a text is neither a string nor a pair
                of them.
        """
        bm25s = _import_bm25s()
        # Words in the order of their first use, so that the same texts give the same files.
        vocabulary: dict[str, int] = {}
        rows = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in split_words(text)]
            for text in _join_pairs(texts, "texts")
        ]
        if not rows:
            raise RagJaxError("texts are empty: the corpus has no passage")
        searcher = bm25s.BM25(method=_METHOD, k1=_K1, b=_B)
        # Texts without words have length zero, which their mean may be too.
        with np.errstate(invalid="ignore"):
            searcher.index((rows, vocabulary), create_empty_token=False, show_progress=False)
        return cls(len(rows), searcher)

    def search(
        self, questions: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """The `k` passages with the largest score for each question, largest first.

        Equal scores come in the order of their rows, so where fewer than `k` passages share a
        word with the question, the first of the others follow with score 0; so do the first `k`
        passages for a question without any word of the corpus.

        Args:
            k: from 1 to the number of passages.

        Returns:
            scores: float32.
            rows: int32, positions in the texts.

        Raises:
            RagJaxError: `k` is out of range, `questions` is one string, or a question is none.
        """
        if not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        questions = list(_join_pairs(questions, "questions"))
        best_scores = np.zeros((len(questions), k), np.float32)
        best_rows = np.zeros((len(questions), k), np.int32)
        for i, question in enumerate(questions):
            words = self.searcher.get_tokens_ids(split_words(question))
            scores = np.zeros(self.size, np.float32)
            if words:
                scores = self.searcher.get_scores_from_ids(words)
            best_rows[i] = _find_best(scores, k)
            best_scores[i] = scores[best_rows[i]]
        return best_scores, best_rows

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index into a folder of its own, whole or not at all, as `Index.save` does.

        The files are those of `bm25s`: arrays without pickles, and JSON.

        Raises:
            RagJaxError: there is something else in the folder.
        """
        manifest = {"backend": "bm25", "size": self.size}
        write_folder(folder, manifest, lambda f: self.searcher.save(f, show_progress=False))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "BM25":
        """Reads what `save` wrote; every file is compared with its SHA-256 first.

        Raises:
            RagJaxError: no index there, an index of another kind, or a missing, additional or
                altered file.
        """
        bm25s = _import_bm25s()
        folder = Path(folder)
        manifest = read_manifest(folder, {"size": int}, ["bm25"])
        check_files(folder, manifest["sha256"], _FILES)
        try:
            searcher = bm25s.BM25.load(folder, show_progress=False)
        except (OSError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RagJaxError(f"bm25s cannot read {folder}: {reason}: build it again") from None
        if searcher.scores["num_docs"] != manifest["size"]:
            raise RagJaxError(f"{folder} has another size than its manifest: build it again")
        return cls(manifest["size"], searcher)


def _import_bm25s() -> Any:
    """Imported where it is used: its import asks JAX for its devices, which must not happen before
    `hosts.connect`. It also has its logger tell every step."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def split_words(text: str) -> list[str]:
    r"""A text's words: runs of `\w` (letters, digits, underscores), without case and marks.

    Marks are accents and the vowel points of Hebrew, Arabic or Hindi, which questions often leave
    out; compatible forms (full-width letters, ligatures, Korean in parts) are taken for the same.
    Emoji and punctuation are no words. Scripts written without spaces (Chinese, Japanese, Thai)
    give one word for each run between punctuation marks.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text).casefold()
        text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    return _WORD.findall(text.lower())


def _join_pairs(texts: Iterable[str | tuple[str, str]], name: str) -> Iterator[str]:
    if isinstance(texts, str):
        raise RagJaxError(f"{name} is one string: pass a list of them")
    for i, text in enumerate(texts):
        parts = text if isinstance(text, tuple | list) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise RagJaxError(f"{name}: entry {i} is neither a string nor a pair of strings")
        yield " ".join(parts)


def _find_best(scores: Float[np.ndarray, "N"], k: int) -> Int[np.ndarray, "k"]:
    """Rows of the `k` largest scores, largest first, equal ones in order; without sorting all."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero(scores >= least)
    return rows[np.argsort(-scores[rows], kind="stable")[:k]].astype(np.int32)
