"""BM25: lexical search, by the words that questions and passages share."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import build
from rag_jax.retrieval.analysis import ENGLISH_FROM, Analysis, count_english, list_words
from rag_jax.retrieval.postings import check_postings, find_best
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing, show
from rag_jax.runtime.progress import log
from rag_jax.search_config import BM25Config

# Lucene's BM25 without the rounding of lengths (Kamphuis et al. 2020, table 1), as bm25s has it
# (Lù 2024, arXiv 2407.03618).
_METHOD = "lucene"

_PARAMS = "params.index.json"
# What its files say of how an index was built, beside k1 and b.
_SETTINGS = {"method": _METHOD, "dtype": "float32", "int_dtype": "int32", "backend": "numpy"}
_FILES = {
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    _PARAMS,
}
_SAMPLED = 1000  # passages by which a corpus's language is told


@dataclasses.dataclass(frozen=True, eq=False)
class BM25:
    """BM25 index of a corpus.

    The score of a passage for a question is the sum over the terms of the question that occur in
    the passage (repeated terms count repeatedly) of

        log(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * L / mean L))

    N is the number of passages, n the number of passages with the term, f the frequency of the term
    in this passage, L the number of terms of this passage. A text is split by `list_words`, and the
    words are reduced to terms by the language's `Analysis`.

    Indices are made by `build` or `load`. `searcher` is the `bm25s` index, with the score of every
    term in every passage.

    Attributes:
        settings: of the index; the language is the one that was used, never "auto".
    """

    size: int
    settings: BM25Config
    searcher: Any = dataclasses.field(repr=False)

    @classmethod
    def build(
        cls, texts: Iterable[str | tuple[str, str]], settings: BM25Config = BM25Config()
    ) -> "BM25":
        """Builds an index.

        Args:
            texts: strings, or (title, text) pairs. Words of titles and texts have the same weight.
                A text without words has a row and always scores 0. Texts are not kept in memory.
            settings: by "auto" the language is English if enough of the words of up to 1,000 evenly
                spaced texts are English stop words (`analysis.ENGLISH_FROM`), else none.

        Raises:
            RagJaxError: there are no texts, a text is neither a string nor a pair of strings, or a
                setting has a value that it cannot have.
        """
        settings = build(BM25Config, vars(settings), path="settings")
        bm25s = _import_bm25s()
        # Words are numbered in the order of first use, so that equal texts give equal files.
        words: dict[str, int] = {}
        rows = [
            [words.setdefault(word, len(words)) for word in list_words(text)]
            for text in _join_pairs(texts, "texts")
        ]
        if not rows:
            raise RagJaxError("texts are empty: the corpus has no passage")
        told = ""
        if settings.language == "auto":
            language, told = _tell_language(rows, list(words))
            settings = dataclasses.replace(settings, language=language)
        vocabulary = _reduce(rows, words, Analysis(settings.language))
        log(
            f"BM25: {len(rows):,} passages, language {settings.language}{told}, "
            f"{len(vocabulary):,} terms, k1 {settings.k1:g}, b {settings.b:g}"
        )
        searcher = bm25s.BM25(method=_METHOD, k1=settings.k1, b=settings.b)
        # bm25s divides by the mean length, which is 0 if no text has words.
        with np.errstate(invalid="ignore"):
            searcher.index((rows, vocabulary), create_empty_token=False, show_progress=False)
        return cls(len(rows), settings, searcher)

    @property
    def analysis(self) -> Analysis:
        """How texts and questions become terms."""
        return Analysis(self.settings.language)

    def search(
        self, questions: Sequence[str], k: int
    ) -> tuple[list[Float[np.ndarray, "n"]], list[Int[np.ndarray, "n"]]]:
        """The at most `k` passages with the largest scores for each question, largest first.

        Equal scores are in the order of the rows. A passage that shares no term with the question
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
        postings = [self.searcher.scores[name] for name in ("data", "indices", "indptr")]
        room = np.zeros(self.size, np.float32)
        for question in questions:
            terms = self.searcher.get_tokens_ids(self.analysis.split(question))
            words, weights = np.asarray(terms, np.int64), np.ones(len(terms), np.float32)
            scores, rows = find_best(*postings, words, weights, room, k=k)
            best_rows.append(rows)
            best_scores.append(scores)
        return best_scores, best_rows

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder, atomically, and replaces an older index.

        The files are those of `bm25s`: arrays without pickles, and JSON.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        manifest = {"backend": "bm25", "size": self.size, **vars(self.settings)}
        manifest["analysis"] = self.analysis.fingerprint
        write_folder(folder, manifest, lambda f: self.searcher.save(f, show_progress=False))

    @classmethod
    def load(cls, folder: str | os.PathLike, settings: BM25Config | None = None) -> "BM25":
        """Reads an index that `save` wrote. Every file is compared with its SHA-256 first.

        Args:
            settings: that the index must have been built with, where "auto" is any language; None
                to accept any.

        Raises:
            RagJaxError: the folder holds no BM25 index, one that is incomplete or altered, or one
                whose settings or terms are not those of questions.
        """
        bm25s = _import_bm25s()
        folder = Path(folder)
        manifest = read_manifest(folder, {"size": int}, ["bm25"])
        found = _read_settings(folder, manifest, settings)
        check_files(folder, manifest["sha256"], _FILES)
        size = manifest["size"]
        with parsing(folder, "is no index that bm25s can read", "build the index again"):
            _check_params(read_json(folder / _PARAMS), found)
            searcher = bm25s.BM25.load(folder, show_progress=False)
            if (counted := searcher.scores["num_docs"]) != size:
                raise RagJaxError(
                    f"{folder} has {show(counted)} passages, not the {size} in its manifest: build "
                    "the index again"
                )
            _check_arrays(searcher.scores, searcher.vocab_dict, size)
        return cls(size, found, searcher)


def _tell_language(rows: Sequence[Sequence[int]], words: Sequence[str]) -> tuple[str, str]:
    """The language of a corpus, "english" or "none", and by what it was told."""
    places = np.linspace(0, len(rows) - 1, min(_SAMPLED, len(rows)), dtype=int)
    sampled = [words[number] for place in places for number in rows[place]]
    share = count_english(sampled) / max(1, len(sampled))
    told = f" ({share:.0%} of the words of {len(places):,} passages are English stop words)"
    return ("english" if share >= ENGLISH_FROM else "none"), told


def _reduce(rows: list[list[int]], words: Mapping[str, int], analysis: Analysis) -> dict[str, int]:
    """Replaces the numbers of words in `rows` by numbers of terms; returns the latter by term."""
    vocabulary: dict[str, int] = {}
    terms = analysis.reduce([*words])
    numbers = [vocabulary.setdefault(term, len(vocabulary)) if term else -1 for term in terms]
    for place, row in enumerate(rows):
        rows[place] = [number for word in row if (number := numbers[word]) >= 0]
    return vocabulary


def _read_settings(
    folder: Path, manifest: Mapping[str, Any], wanted: BM25Config | None
) -> BM25Config:
    """The settings of a stored index, if its terms are those that this version makes."""
    names = [field.name for field in dataclasses.fields(BM25Config)]
    if not {"analysis", *names} <= manifest.keys():
        raise RagJaxError(
            f"{folder} is of an older version, which kept no analysis of words: build the index "
            "again"
        )
    try:
        found = build(BM25Config, {name: manifest[name] for name in names}, path="settings")
    except RagJaxError as error:
        raise RagJaxError(f"{folder}: {error}; build the index again") from None
    made = found.language != "auto" and Analysis(found.language).fingerprint
    if manifest["analysis"] != made:
        raise RagJaxError(
            f"{folder} has terms of another analysis ({show(found.language)}, "
            f"{show(manifest['analysis'])[:18]}) than questions: build the index again"
        )
    for name in names if wanted else ():
        value = getattr(wanted, name)
        if value not in (getattr(found, name), "auto"):
            raise RagJaxError(
                f"{folder} was built with {name} {getattr(found, name)}, not {value}: build the "
                "index again, or ask it with its own settings"
            )
    return found


def _check_params(params: Mapping[str, Any], settings: BM25Config) -> None:
    """Raises a ValueError unless parameters of `bm25s` are those that `build` sets."""
    for name, value in {**_SETTINGS, "k1": settings.k1, "b": settings.b}.items():
        if params[name] != value:
            raise ValueError(f"{_PARAMS}: {name} is {show(params[name])}, not {value!r}")


def _check_arrays(scores: Mapping[str, Any], vocabulary: Any, size: int) -> None:
    """Raises a ValueError unless an index's arrays form a matrix `[words, size]` of finite scores.

    `bm25s` adds up what the arrays point to, whatever that is.
    """
    data, rows, starts = (scores[name] for name in ("data", "indices", "indptr"))
    check_postings(data, rows, starts, size)
    if not all(type(i) is int and 0 <= i < len(starts) - 1 for i in vocabulary.values()):
        raise ValueError("a word's number is out of range")


def _import_bm25s() -> Any:
    """Imports `bm25s` and silences its log of every step."""
    # A module-level import would initialise JAX's devices, too early for `hosts.connect`.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def _join_pairs(texts: Iterable[str | tuple[str, str]], name: str) -> Iterator[str]:
    if isinstance(texts, str):
        raise RagJaxError(f"{name} is one string: pass a list of them")
    for i, text in enumerate(texts):
        parts = text if isinstance(text, tuple | list) else (text,)
        if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
            raise RagJaxError(f"{name}: entry {i} is neither a string nor a pair of strings")
        yield " ".join(parts)
