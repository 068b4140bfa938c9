"""Index of a corpus's sparse vectors: inverted, searched by dot product, exactly."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, issparse

from rag_jax.retrieval.postings import check_postings, find_best
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, save_array
from rag_jax.runtime.manifest import check_encoder, check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing

_BACKEND = "sparse"
_FILES = ("data.npy", "rows.npy", "starts.npy", "counts.npy")


@dataclasses.dataclass(frozen=True, eq=False)
class SparseIndex:
    """Inverted index of a corpus's sparse vectors, searched by dot product, exactly.

    Indices are made by `build` or `load`.

    Attributes:
        encoder: fingerprint of the encoder that made the vectors.
        size: number of passages (`N`).
        data: the weights of each word's passages, in float32, one word after the other.
        rows: the passages that the weights are of.
        starts: where each word's passages begin, and the end of the last one's.
    """

    encoder: str
    size: int
    data: Float[np.ndarray, "P"] = dataclasses.field(repr=False)
    rows: Int[np.ndarray, "P"] = dataclasses.field(repr=False)
    starts: Int[np.ndarray, "V+1"] = dataclasses.field(repr=False)

    @property
    def width(self) -> int:
        """Number of words (`V`)."""
        return len(self.starts) - 1

    @classmethod
    def build(cls, weights: Any, *, encoder: str) -> "SparseIndex":
        """Builds an index.

        Args:
            weights: of the passages, `[N, V]`: what `encode_sparse` gives, or another matrix of
                SciPy or NumPy.
            encoder: fingerprint of the encoder.

        Raises:
            RagJaxError: there is no passage, or the weights are no finite numbers.
        """
        matrix = _check_weights(weights, "weights")
        if not matrix.shape[0]:
            raise RagJaxError(f"weights have shape {matrix.shape}: the corpus is empty")
        by_word = matrix.tocsc()
        rows, starts = by_word.indices.astype(np.int32), by_word.indptr.astype(np.int64)
        return cls(encoder, matrix.shape[0], by_word.data, rows, starts)

    def search(
        self, queries: Any, k: int
    ) -> tuple[list[Float[np.ndarray, "n"]], list[Int[np.ndarray, "n"]]]:
        """The at most `k` passages with the largest dot products with each query, largest first.

        Equal ones are in the order of the rows. A passage whose product is not above 0, such as one
        that shares no word with the query, is not found.

        Args:
            queries: weights `[Q, V]`, as for `build`.

        Returns:
            For each query the scores, and the rows as positions in the corpus.

        Raises:
            RagJaxError: `k` is not from 1 to `size`, or the queries are no finite numbers or have
                another number of words.
        """
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        queries = _check_weights(queries, "queries")
        if queries.shape[1] != self.width:
            raise RagJaxError(
                f"queries have {queries.shape[1]} words, but the index has {self.width}: encode "
                "them with the index's encoder"
            )
        best_scores, best_rows = [], []
        room = np.zeros(self.size, np.float32)
        for start, end in zip(queries.indptr[:-1], queries.indptr[1:], strict=True):
            words, weights = queries.indices[start:end], queries.data[start:end]
            scores, rows = find_best(self.data, self.rows, self.starts, words, weights, room, k=k)
            best_scores.append(scores)
            best_rows.append(rows)
        return best_scores, best_rows

    def _count(self) -> Int[np.ndarray, "N"]:
        """Number of words of each passage, by which a stored index tells how many there are."""
        return np.bincount(self.rows, minlength=self.size).astype(np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder of NumPy arrays, atomically, and replaces an older index.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        manifest = {"backend": _BACKEND, "encoder": self.encoder, "size": self.size}
        arrays = zip(_FILES, (self.data, self.rows, self.starts, self._count()), strict=True)

        def write(folder: Path) -> None:
            for name, array in arrays:
                save_array(folder / name, array)

        write_folder(folder, {**manifest, "width": self.width}, write)

    @classmethod
    def load(cls, folder: str | os.PathLike, *, encoder: str) -> "SparseIndex":
        """Reads an index that `save` wrote. Every file is compared with its SHA-256 first.

        Args:
            encoder: fingerprint of the encoder of the queries.

        Raises:
            RagJaxError: the folder holds no sparse index, one of another encoder, or one that is
                incomplete or altered, or whose arrays contradict each other.
        """
        folder = Path(folder)
        kinds = {"encoder": str, "size": int, "width": int}
        manifest = read_manifest(folder, kinds, [_BACKEND])
        check_encoder(folder, manifest, encoder)
        check_files(folder, manifest["sha256"], _FILES)
        data, rows, starts, counts = (map_array(folder / name) for name in _FILES)
        with parsing(folder, "is no sparse index", "build the index again"):
            if counts.shape != (manifest["size"],):
                raise ValueError("its passages are not those of its manifest")
            check_postings(data, rows, starts, len(counts))
            if len(starts) != manifest["width"] + 1 or data.dtype != np.float32:
                raise ValueError("its words are not those of its manifest")
            index = cls(encoder, len(counts), data, rows, starts)
            if not np.array_equal(index._count(), counts):
                raise ValueError("its passages have other numbers of words")
        return index


def _check_weights(values: Any, name: str) -> csr_array:
    """Weights as a matrix of finite float32 numbers, each word of a row once.

    Raises:
        RagJaxError: they are no matrix of real numbers, or a row has a NaN or an infinity.
    """
    try:
        if not issparse(values) and np.ndim(values) != 2:
            raise ValueError("a matrix [rows, words] is expected")
        if np.dtype(values.dtype).kind not in "fiu":
            raise ValueError(f"they are {values.dtype}")
        with np.errstate(over="ignore"):
            matrix = csr_array(values, dtype=np.float32, copy=True)
    except (TypeError, ValueError, AttributeError) as error:
        raise RagJaxError(f"{name} are no weights of words ({error}): encode texts first") from None
    matrix.sum_duplicates()
    is_finite = np.isfinite(matrix.data)
    if not is_finite.all():
        row = np.searchsorted(matrix.indptr, np.argmin(is_finite), side="right") - 1
        raise RagJaxError(f"{name}: row {row} has a NaN or an infinity")
    return matrix
