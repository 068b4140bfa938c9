"""What finds passages for questions: BM25, an index with its encoder, or any class like these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from rag_jax.retrieval.index import Index
from rag_jax.retrieval.sparse_index import SparseIndex
from rag_jax.retrieval.token_index import TokenIndex
from rag_jax.retrieval.token_vectors import TokenVectors
from rag_jax.runtime.errors import RagJaxError

# For each question the scores, largest first, and the rows of the passages.
Found = tuple[Sequence[Float[ndarray, "n"]], Sequence[Int[ndarray, "n"]]]


class Searcher(Protocol):
    """A search over one corpus. `BM25`, `Dense`, `Sparse`, `LateInteraction` and `Fused` are.

    A class of your own needs these two, and nothing of this library.
    """

    @property
    def size(self) -> int:
        """Number of passages of the corpus."""
        ...

    def search(self, questions: Sequence[str], k: int) -> Found:
        """The at most `k` best passages for each question, best first.

        Returns:
            For each question the scores, which fall, and the passages as their positions in the
            corpus, each at most once. Scores of two searchers need not be comparable.
        """
        ...


def check_count(k: int, size: int) -> None:
    """Raises a RagJaxError if `k` is no number of passages of a corpus of `size`."""
    if not isinstance(k, int | np.integer) or not 1 <= k <= size:
        raise RagJaxError(f"k is {k}: it must be from 1 to {size}, the corpus's size")


def check_found(found: Found, asked: int, size: int, name: str) -> None:
    """Refuses what a searcher found if it is not as `Searcher.search` says.

    Args:
        asked: number of questions.
        size: number of passages of the corpus.
        name: of the searcher, for messages.

    Raises:
        RagJaxError: it did not answer all questions, or found what is not there, a passage twice,
            or not the best one first.
    """
    scores, rows = found
    if len(scores) != asked or len(rows) != asked:
        raise RagJaxError(f"{name} answered {len(rows)} of {asked} questions")
    for worth, own in zip(scores, rows, strict=True):
        own, worth = np.asarray(own), np.asarray(worth)
        if own.shape != worth.shape or not np.isfinite(worth).all():
            raise RagJaxError(f"{name} found passages without finite scores, one for each")
        if own.size and own.dtype.kind not in "iu":
            raise RagJaxError(f"{name} found rows that are no integers")
        if own.size and not 0 <= own.min() <= own.max() < size:
            raise RagJaxError(f"{name} found row {own.max()} among {size} passages")
        if len(np.unique(own)) != len(own) or (np.diff(worth) > 0).any():
            raise RagJaxError(f"{name} found a passage twice, or not the best one first")


@dataclass(frozen=True, eq=False)
class Dense:
    """A search for the passages whose embeddings have the largest dot product with a question's.

    Attributes:
        encode: questions to their embeddings, by the encoder that the index was made with.
    """

    index: Index
    encode: Callable[[Sequence[str]], Float[ndarray, "Q D"]]

    @property
    def size(self) -> int:
        """Number of passages of the corpus."""
        return self.index.size

    def search(self, questions: Sequence[str], k: int) -> Found:
        """As `Index.search` of the questions' embeddings.

        Raises:
            RagJaxError: as `Index.search`.
        """
        return self.index.search(self.encode(questions), k)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A search for the passages whose weights of words have the largest product with a question's.

    Attributes:
        encode: questions to their weights, by the encoder that the index was made with.
    """

    index: SparseIndex
    encode: Callable[[Sequence[str]], csr_array]

    @property
    def size(self) -> int:
        """Number of passages of the corpus."""
        return self.index.size

    def search(self, questions: Sequence[str], k: int) -> Found:
        """As `SparseIndex.search` of the questions' weights.

        Raises:
            RagJaxError: as `SparseIndex.search`.
        """
        return self.index.search(self.encode(questions), k)


@dataclass(frozen=True, eq=False)
class LateInteraction:
    """A search for the passages whose tokens are the nearest to those of a question, by MaxSim.

    Attributes:
        encode: questions to their token embeddings, by the encoder that the index was made with.
        first: the searcher whose best passages are compared; None for all passages, which is exact
            and takes time in proportion to the corpus.
        depth: number of passages of `first` that are compared, at least `k`.
    """

    index: TokenIndex
    encode: Callable[[Sequence[str]], TokenVectors]
    first: Searcher | None = None
    depth: int = 100

    def __post_init__(self) -> None:
        """Raises a RagJaxError if the two corpora differ in size, or nothing is compared."""
        if self.first is not None and self.first.size != self.index.size:
            raise RagJaxError(
                f"first is over {self.first.size} passages, the index over {self.index.size}: take "
                "those of one corpus"
            )
        if self.depth < 1:
            raise RagJaxError(f"depth is {self.depth}: it must be at least 1")

    @property
    def size(self) -> int:
        """Number of passages of the corpus."""
        return self.index.size

    def search(self, questions: Sequence[str], k: int) -> Found:
        """The at most `k` passages with the largest scores for each question, largest first.

        Raises:
            RagJaxError: as `TokenIndex.search`, or `first` found what is not in the corpus.
        """
        queries = self.encode(questions)
        if self.first is None:
            return self.index.search(queries, k)
        _, candidates = self.first.search(questions, min(max(k, self.depth), self.size))
        return self.index.rank(queries, candidates, k)
