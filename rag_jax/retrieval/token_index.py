"""Index of passages' token embeddings, searched by MaxSim (Khattab and Zaharia 2020, ColBERT)."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from rag_jax.data.batches import double_up
from rag_jax.retrieval.matrices import check_matrix
from rag_jax.retrieval.token_vectors import TokenVectors
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, save_array
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.manifest import check_encoder, check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing

_BACKEND = "tokens"
_VECTORS, _STARTS, _SCALES = "vectors.npy", "starts.npy", "scales.npy"
_DTYPES = ("float16", "int8")
_STEPS = 127  # of int8, to either side of 0
# Number of questions, and of tokens of passages, that are compared in one call; tokens are padded
# to powers of two from this one, so that few programs are compiled.
_QUESTIONS, _BLOCK, _NARROWEST = 8, 8192, 8
_CHECKED_TOGETHER = 1 << 16  # tokens whose numbers are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class TokenIndex:
    """Token embeddings of a corpus, searchable by MaxSim.

    A passage's score is the sum, over the tokens of the question, of the largest dot product with a
    token of the passage. A passage without tokens has no score and is never found.

    Indices are made by `build` or `load`.

    Attributes:
        encoder: fingerprint of the encoder that made the embeddings.
        tokens: the embeddings in float16 or int8.
        scales: size of a step of each token's numbers in int8; None in float16.
    """

    encoder: str
    tokens: TokenVectors = dataclasses.field(repr=False)
    scales: Float[np.ndarray, "P"] | None = dataclasses.field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of passages."""
        return len(self.tokens)

    @property
    def width(self) -> int:
        """Number of features of a token's embedding (`E`)."""
        return self.tokens.vectors.shape[1]

    @classmethod
    def build(
        cls, tokens: TokenVectors, *, encoder: str, dtype: Literal["float16", "int8"] = "float16"
    ) -> "TokenIndex":
        """Builds an index.

        Args:
            tokens: of the passages, by `encode_tokens`.
            encoder: fingerprint of the encoder.
            dtype: "float16", or "int8" with a step a token, in which its largest number is 127.

        Raises:
            RagJaxError: there is no passage, a number is not finite or too large for `dtype`, or
                there is no such `dtype`.
        """
        if dtype not in _DTYPES:
            raise RagJaxError(f"dtype={dtype!r}: must be one of {', '.join(_DTYPES)}")
        tokens = check_tokens(tokens, "tokens")
        if not len(tokens):
            raise RagJaxError("tokens are of no text: the corpus is empty")
        if dtype == "float16":
            with np.errstate(over="ignore"):
                tokens = dataclasses.replace(tokens, vectors=tokens.vectors.astype(np.float16))
            return cls(encoder, check_tokens(tokens, "tokens in float16"))
        vectors = tokens.vectors.astype(np.float32)
        scales = np.abs(vectors).max(axis=1, initial=0) / _STEPS
        scales = np.where(scales > 0, scales, np.float32(1))
        steps = np.clip(np.round(vectors / scales[:, None]), -_STEPS, _STEPS).astype(np.int8)
        return cls(encoder, dataclasses.replace(tokens, vectors=steps), scales)

    def search(
        self, queries: TokenVectors, k: int
    ) -> tuple[list[Float[np.ndarray, "n"]], list[Int[np.ndarray, "n"]]]:
        """The `k` passages with the largest scores for each question, of all, largest first.

        Equal ones are in the order of the rows. A question without tokens finds nothing.

        Args:
            queries: tokens of the questions, by `encode_tokens`.

        Returns:
            For each question the scores, and the rows as positions in the corpus.

        Raises:
            RagJaxError: `k` is not from 1 to `size`, or the embeddings are not finite or of another
                width.
        """
        queries, everything = self._check(queries, k), np.arange(self.size)
        best_scores, best_rows = [], []
        for start in range(0, len(queries), _QUESTIONS):
            asked = [queries[i] for i in range(start, min(start + _QUESTIONS, len(queries)))]
            for question, scores in zip(asked, self._score(asked, everything), strict=True):
                places = _find_best(scores, k if len(question) else 0)
                best_scores.append(scores[places])
                best_rows.append(places.astype(np.int32))
        return best_scores, best_rows

    def rank(
        self, queries: TokenVectors, candidates: Sequence[Int[np.ndarray, "n"]], k: int
    ) -> tuple[list[Float[np.ndarray, "n"]], list[Int[np.ndarray, "n"]]]:
        """As `search`, of each question's candidates.

        Args:
            candidates: rows for each question, each at most once, in any order.

        Raises:
            RagJaxError: as `search`, or there are not candidates for each question, or they are no
                rows of the corpus.
        """
        queries = self._check(queries, k)
        if len(candidates) != len(queries):
            raise RagJaxError(f"candidates are of {len(candidates)} questions, not {len(queries)}")
        best_scores, best_rows = [], []
        for number, rows in enumerate(candidates):
            rows = np.sort(np.asarray(rows, np.int64))
            if rows.size and not 0 <= rows[0] <= rows[-1] < self.size:
                wrong = rows[0] if rows[0] < 0 else rows[-1]
                raise RagJaxError(
                    f"candidates: entry {number} has row {wrong} among {self.size} passages"
                )
            if (np.diff(rows) == 0).any():
                raise RagJaxError(f"candidates: entry {number} has a row twice")
            (scores,) = self._score([queries[number]], rows)
            places = _find_best(scores, k if len(queries[number]) else 0)
            best_scores.append(scores[places])
            best_rows.append(rows[places].astype(np.int32))
        return best_scores, best_rows

    def _check(self, queries: TokenVectors, k: int) -> TokenVectors:
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        queries = check_tokens(queries, "queries")
        if queries.vectors.shape[1] != self.width:
            raise RagJaxError(
                f"queries have {queries.vectors.shape[1]} dimensions, but the index has "
                f"{self.width}: encode them with the index's encoder"
            )
        return queries

    def _score(
        self, asked: Sequence[Float[np.ndarray, "T E"]], rows: Int[np.ndarray, "n"]
    ) -> Float[np.ndarray, "Q n"]:
        """Scores of passages for up to `_QUESTIONS` questions; -inf for one without tokens."""
        count = 1 if len(asked) == 1 else _QUESTIONS
        width = double_up(max(map(len, asked), default=1) or 1, _NARROWEST)
        queries = np.zeros((count, width, self.width), np.float32)
        for query, question in zip(queries, asked, strict=False):
            query[: len(question)] = question
        lengths = np.asarray([*map(len, asked)] + [0] * (count - len(asked)), np.int32)
        scores = np.full((len(asked), len(rows)), -np.inf, np.float32)
        for places, shape in self._plan(rows):
            block = self._gather(rows[places], *shape)
            found = fetch(score_block(queries, lengths, *block))
            scores[:, places] = found[: len(asked), : len(places)]
        return scores

    def _plan(
        self, rows: Int[np.ndarray, "n"]
    ) -> Iterator[tuple[Int[np.ndarray, "m"], tuple[int, int]]]:
        """Yields blocks as places in `rows` and the padded shape, passages of a width together."""
        lengths = np.diff(self.tokens.starts)[rows]
        widths = np.asarray([double_up(n, _NARROWEST) if n else 0 for n in lengths.tolist()])
        for width in np.unique(widths[widths > 0]).tolist():
            places, count = np.flatnonzero(widths == width), max(1, _BLOCK // width)
            for start in range(0, len(places), count):
                yield places[start : start + count], (count, width)

    def _gather(
        self, rows: Int[np.ndarray, "m"], count: int, width: int
    ) -> tuple[Num[np.ndarray, "n S E"], Int[np.ndarray, "n"], Float[np.ndarray, "n S"] | None]:
        """Embeddings of passages, padded to `[count, width, E]`, their numbers, their scales."""
        starts, lengths = self.tokens.starts[rows], np.zeros(count, np.int32)
        lengths[: len(rows)] = self.tokens.starts[rows + 1] - starts
        # [m, 1] + [1, S] -> [m, S]; what lies beyond a passage is not looked at.
        places = np.minimum(starts[:, None] + np.arange(width), self.tokens.starts[-1] - 1)
        vectors = np.zeros((count, width, self.width), self.tokens.vectors.dtype)
        vectors[: len(rows)] = self.tokens.vectors[places]
        if self.scales is None:
            return vectors, lengths, None
        scales = np.zeros((count, width), np.float32)
        scales[: len(rows)] = self.scales[places]
        return vectors, lengths, scales

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder of NumPy arrays, atomically, and replaces an older index.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        manifest = {"backend": _BACKEND, "encoder": self.encoder, "size": self.size}
        manifest |= {"width": self.width, "dtype": self.tokens.vectors.dtype.name}
        arrays = {_VECTORS: self.tokens.vectors, _STARTS: self.tokens.starts}
        arrays |= {} if self.scales is None else {_SCALES: self.scales}

        def write(folder: Path) -> None:
            for name, array in arrays.items():
                save_array(folder / name, array)

        write_folder(folder, manifest, write)

    @classmethod
    def load(cls, folder: str | os.PathLike, *, encoder: str) -> "TokenIndex":
        """Reads an index that `save` wrote. Every file is compared with its SHA-256 first.

        The embeddings stay on the disk until a search looks at them.

        Args:
            encoder: fingerprint of the encoder of the questions.

        Raises:
            RagJaxError: the folder holds no index of tokens, one of another encoder, or one that is
                incomplete or altered, or whose arrays contradict each other.
        """
        folder = Path(folder)
        kinds = {"encoder": str, "size": int, "width": int, "dtype": str}
        manifest = read_manifest(folder, kinds, [_BACKEND])
        check_encoder(folder, manifest, encoder)
        names = (_VECTORS, _STARTS, *([_SCALES] if manifest["dtype"] == "int8" else []))
        check_files(folder, manifest["sha256"], names)
        with parsing(folder, "is no index of tokens", "build the index again"):
            vectors, starts, *scales = (map_array(folder / name) for name in names)
            shape = starts.shape, vectors.shape[1:], vectors.dtype.name
            wanted = (manifest["size"] + 1,), (manifest["width"],), manifest["dtype"]
            if shape != wanted or manifest["dtype"] not in _DTYPES:
                raise ValueError("its arrays are not those of its manifest")
            tokens = TokenVectors(vectors, starts)
            _check_starts(tokens)
            if scales and (scales[0].shape != vectors.shape[:1] or scales[0].dtype != np.float32):
                raise ValueError("its scales are not one for each token")
            for array in (vectors, *scales):
                _check_finite(array, starts, str(folder))
        return cls(encoder, tokens, *scales)


@jax.jit
def score_block(
    queries: Float[Array, "Q T E"],
    query_lengths: Int[Array, "Q"],
    vectors: Num[Array, "n S E"],
    lengths: Int[Array, "n"],
    scales: Float[Array, "n S"] | None,
) -> Float[Array, "Q n"]:
    """MaxSim of padded questions and passages; -inf for a passage without tokens."""
    rows, width, features = queries.shape
    # [Q * T, E] x [E, n * S] -> [Q * T, n * S]; TPUs would round both factors to bfloat16.
    flat = vectors.astype(jnp.float32).reshape(-1, features).T
    precision = jax.lax.Precision.HIGHEST
    products = jnp.matmul(queries.reshape(-1, features), flat, precision=precision)
    products = products.reshape(rows, width, *vectors.shape[:2])
    products = products if scales is None else products * scales[None, None]
    is_token: Bool[Array, "n S"] = jnp.arange(vectors.shape[1])[None] < lengths[:, None]
    best = jnp.where(is_token[None, None], products, -jnp.inf).max(axis=-1)  # [Q, T, n]
    is_asked = jnp.arange(width)[None] < query_lengths[:, None]
    return jnp.where(is_asked[..., None], best, 0).sum(axis=1)


def check_tokens(tokens: TokenVectors, name: str) -> TokenVectors:
    """Token embeddings as float32 or float16, finite, each text after the one before.

    Raises:
        RagJaxError: the embeddings are of another kind, or a text's have a NaN or an infinity.
    """
    if not isinstance(tokens, TokenVectors):
        kind = type(tokens).__name__
        raise RagJaxError(f"{name}: a {kind} is no TokenVectors: encode texts by encode_tokens")
    vectors, starts = tokens.vectors, np.asarray(tokens.starts)
    if getattr(vectors, "dtype", None) not in (np.float16, np.float32) or np.ndim(vectors) != 2:
        vectors = check_matrix(vectors, name)
    tokens = TokenVectors(vectors, starts)
    try:
        _check_starts(tokens)
    except ValueError as error:
        raise RagJaxError(f"{name}: {error}") from None
    _check_finite(vectors, starts, name)
    return tokens


def _check_starts(tokens: TokenVectors) -> None:
    """Raises a ValueError unless the texts' tokens follow each other."""
    starts = tokens.starts
    if starts.ndim != 1 or starts.dtype.kind not in "iu" or not len(starts):
        raise ValueError("the starts of the texts are of another kind")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or starts[-1] != len(tokens.vectors) or (np.diff(starts) < 0).any():
        raise ValueError("the texts' tokens do not follow each other")


def _check_finite(
    array: Num[np.ndarray, "P ..."], starts: Int[np.ndarray, "N+1"], name: str
) -> None:
    """Raises a RagJaxError that names the text with a NaN or an infinity."""
    for start in range(0, len(array), _CHECKED_TOGETHER):
        block = array[start : start + _CHECKED_TOGETHER]
        is_finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not is_finite.all():
            token = start + int(np.argmin(is_finite))
            row = np.searchsorted(starts, token, side="right") - 1
            raise RagJaxError(f"{name}: row {row} has a NaN or an infinity")


def _find_best(scores: Float[np.ndarray, "n"], k: int) -> Int[np.ndarray, "m"]:
    """Places of the up to `k` largest scores, largest first, equal ones in their order."""
    places = np.argsort(-scores, kind="stable")[:k]
    return places[np.isfinite(scores[places])]
