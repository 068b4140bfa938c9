"""Search by FAISS: exhaustive, by a graph (HNSW), or by partitions of short codes (IVF).

Settings follow "Guidelines to choose an index" in FAISS's documentation, with its own defaults
where that leaves a choice.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.storage import Stored
from rag_jax.runtime.errors import RagJaxError

# Fewer rows are compared one by one: k-means with 256 centres, as codes need, wants 39 rows for
# each, FAISS's `min_points_per_centroid`.
_INDEX_FROM = 10_000
# The guidelines: 4 sqrt(N) to 16 sqrt(N) partitions, trained on 30 to 256 rows for each.
_PARTITIONS, _TRAINED, _FEWEST = 4, 64, 39
# The guidelines: a graph with 4 to 64 neighbours of a row; and the rows that a search keeps on its
# way, at least.
_NEIGHBOURS, _EXPLORED = 32, 128
# A search reads one partition of this number, as ScaNN's here does, and some at least.
_PROBED, _FEWEST_PROBED = 10, 8
# Candidates of codes that are rescored, as a multiple of k; and, with one for each partition that
# is read, the fewest.
_RESCORED, _FEWEST_RESCORED = 20, 200
# Dimensions for each byte of a product quantiser's code; bits of a RaBitQ code for a dimension, and
# of a query's numbers.
_QUANTISED, _BITS, _QUERY_BITS = 8, 1, 8
# How much longer than another a row of one part may be, and the most parts.
_SPREAD, MOST_PARTS = 3, 8
_ADDED_TOGETHER = 1 << 16  # rows, which bounds the memory


class Part(NamedTuple):
    """Rows of similar length, and what searches them.

    Attributes:
        rows: of the corpus, rising.
        index: FAISS's index, whose rows are positions in `rows`; None for few rows.
        embeddings: of few rows, which are compared one by one; None beside an index.
    """

    rows: Int[np.ndarray, "n"]
    index: Any
    embeddings: Float[np.ndarray, "n D"] | None


class Faiss(NamedTuple):
    """A corpus in FAISS's indices: one for each part of rows of similar length.

    Graphs and codes are fitted to all rows of an index. Rows that are 100 times as long as the
    others would leave them nothing, so those have an index of their own.

    Attributes:
        embeddings: of the corpus, not copied.
        parts: none if all rows are compared one by one.
        rotation: FAISS's transform of embeddings and queries, because RaBitQ's codes take all
            dimensions for equally important; None without.
    """

    embeddings: Float[np.ndarray, "N D"]
    parts: tuple[Part, ...] = ()
    rotation: Any = None


def build_flat(stored: Stored) -> Faiss:
    """A search that compares all rows, by FAISS on the CPU. Nothing is copied."""
    return Faiss(stored.values)


def build_hnsw(stored: Stored) -> Faiss:
    """A graph over float32 embeddings (Malkov and Yashunin 2016), the same to the bit each time.

    It is built on one thread, because several threads add rows in an order that differs.
    """
    embeddings = stored.values

    def build(rows: Int[np.ndarray, "n"]) -> Any:
        index = make_hnsw(embeddings.shape[1])
        with _use_threads(1):
            index.add(take_rows(embeddings, rows))
        return index

    return Faiss(embeddings, _build_parts(embeddings, build))


def build_ivfpq(stored: Stored) -> Faiss:
    """Partitions of product-quantised codes (Jégou et al. 2011), the same to the bit each time."""
    return _build_ivf(stored.values, make_ivfpq, None)


def build_ivfrabitq(stored: Stored) -> Faiss:
    """Partitions of RaBitQ's codes (Gao and Long 2024), the same to the bit each time."""
    rotation = make_rotation(draw_rotation(stored.values.shape[1]))
    return _build_ivf(stored.values, make_ivfrabitq, rotation)


def make_hnsw(width: int) -> Any:
    """An empty graph."""
    import faiss

    return faiss.IndexHNSWFlat(width, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)


def make_ivfpq(width: int, size: int) -> Any:
    """Empty partitions for `size` rows with product-quantised codes."""
    import faiss

    dimensions = next(d for d in range(_QUANTISED, 0, -1) if width % d == 0)
    options = width, count_partitions(size), width // dimensions, 8, faiss.METRIC_INNER_PRODUCT
    return _make_ivf(faiss.IndexIVFPQ, *options)


def make_ivfrabitq(width: int, size: int) -> Any:
    """Empty partitions for `size` rows with RaBitQ's codes."""
    import faiss

    options = width, count_partitions(size), faiss.METRIC_INNER_PRODUCT, True, _BITS
    return _make_ivf(faiss.IndexIVFRaBitQ, *options)


def count_partitions(size: int) -> int:
    """Number of partitions of `size` rows."""
    return max(1, min(_PARTITIONS * math.isqrt(size), size // _FEWEST))


def draw_rotation(width: int) -> Float[np.ndarray, "D D"]:
    """The matrix of a random rotation, always the same."""
    normal = np.random.default_rng(0).standard_normal((width, width))
    return np.linalg.qr(normal)[0].astype(np.float32)


def make_rotation(matrix: Float[np.ndarray, "D D"]) -> Any:
    """FAISS's transform by a matrix. NumPy's threads would contend with those of its search."""
    import faiss

    rotation = faiss.LinearTransform(*matrix.shape, False)
    faiss.copy_array_to_vector(matrix.ravel(), rotation.A)
    rotation.is_trained = True
    return rotation


def read_rotation(rotation: Any) -> Float[np.ndarray, "D D"]:
    """The matrix of FAISS's transform."""
    import faiss

    return faiss.vector_to_array(rotation.A).reshape(rotation.d_out, rotation.d_in)


def split_by_length(embeddings: Float[np.ndarray, "N D"]) -> list[Int[np.ndarray, "n"]]:
    """Rows in parts, the longest first, within which lengths differ by `_SPREAD` times at most.

    There are at most `MOST_PARTS`, of which the last has whatever remains.
    """
    lengths = _measure_lengths(embeddings)
    order = np.argsort(-lengths, kind="stable")
    falling, parts, start = lengths[order], [], 0
    while start < len(order):
        end = int(np.searchsorted(-falling, -falling[start] / _SPREAD, side="right"))
        if len(parts) == MOST_PARTS - 1:
            end = len(order)
        parts.append(np.sort(order[start:end]).astype(np.int32))
        start = end
    return parts


def _measure_lengths(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N"]:
    return np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))


def make_part(embeddings: Float[np.ndarray, "N D"], rows: Int[np.ndarray, "n"], index: Any) -> Part:
    """A part with its index, or without one with the embeddings of its rows."""
    return Part(rows, index, take_rows(embeddings, rows) if index is None else None)


def is_small(rows: Int[np.ndarray, "n"]) -> bool:
    """Whether a part has too few rows for an index."""
    return len(rows) < _INDEX_FROM


def take_rows(
    embeddings: Float[np.ndarray, "N D"], rows: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n D"]:
    """Some rows, which are not copied if they are all."""
    return embeddings if len(rows) == len(embeddings) else embeddings[rows]


def _build_parts(
    embeddings: Float[np.ndarray, "N D"], build: Callable[[Int[np.ndarray, "n"]], Any]
) -> tuple[Part, ...]:
    parts = split_by_length(embeddings)
    indices = (None if is_small(rows) else build(rows) for rows in parts)
    return tuple(make_part(embeddings, *part) for part in zip(parts, indices, strict=True))


def _build_ivf(
    embeddings: Float[np.ndarray, "N D"],
    make: Callable[[int, int], Any],
    rotation: Any,
) -> Faiss:
    def build(rows: Int[np.ndarray, "n"]) -> Any:
        index = make(embeddings.shape[1], len(rows))
        trained = np.linspace(0, len(rows) - 1, min(len(rows), _TRAINED * index.nlist), dtype=int)
        sample = embeddings[rows[trained]]
        # Partitions have centres of length 1. A power of two rounds nothing, nor changes an order.
        scale = np.float32(0.5) ** np.round(np.log2(np.median(_measure_lengths(sample)) or 1.0))
        index.train(_rotate_alike(sample * scale, rotation))
        for start in range(0, len(rows), _ADDED_TOGETHER):
            block = embeddings[rows[start : start + _ADDED_TOGETHER]]
            index.add(_rotate_alike(block * scale, rotation))
        return index

    return Faiss(embeddings, _build_parts(embeddings, build), rotation)


def _make_ivf(kind: Callable[..., Any], width: int, *options: Any) -> Any:
    import faiss

    quantiser = faiss.IndexFlatIP(width)
    index = kind(quantiser, width, *options)
    quantiser.this.disown()  # the index frees it
    index.own_fields = True
    index.cp.spherical = True  # centres of length 1, as FAISS has it for dot products
    return index


def _rotate(vectors: Float[np.ndarray, "n D"], rotation: Any) -> Float[np.ndarray, "n D"]:
    return vectors if rotation is None else rotation.apply(vectors)


def _rotate_alike(vectors: Float[np.ndarray, "n D"], rotation: Any) -> Float[np.ndarray, "n D"]:
    """The same rotated vectors whatever the number of threads, with which BLAS rounds otherwise."""
    with _use_threads(1):
        return _rotate(vectors, rotation)


@contextlib.contextmanager
def _use_threads(count: int) -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def search_faiss(
    searcher: Faiss,
    queries: Float[np.ndarray, "Q D"],
    k: int,
    size: int,
    *,
    effort: int | None = None,
) -> Int[np.ndarray, "Q k"]:
    """`k` different rows for each query, approximately the best ones.

    Args:
        effort: number of rows of a graph or of partitions that a search looks at; None for one by
            the index's size.

    Raises:
        RagJaxError: dot products are beyond float32.
    """
    del size  # which the embeddings have
    if not searcher.parts:
        return _compare_all(searcher.embeddings, queries, k)
    rotated = _rotate(queries, searcher.rotation)
    found = [_search_part(part, queries, rotated, k, effort) for part in searcher.parts]
    rows = np.concatenate(found, axis=1)
    # Partitions that were looked at may hold too few rows, and a graph of equal rows falls apart.
    rows = _choose(searcher.embeddings, queries, rows, k)
    is_short = (rows < 0).any(axis=1)
    if is_short.any():
        rows[is_short] = _compare_all(searcher.embeddings, queries[is_short], k)
    return rows


def _choose(
    embeddings: Float[np.ndarray, "N D"],
    queries: Float[np.ndarray, "Q D"],
    rows: Int[np.ndarray, "Q c"],
    k: int,
) -> Int[np.ndarray, "Q k"]:
    """The candidates with the `k` largest dot products, and -1 where there are fewer."""
    import faiss

    count = rows.shape[1]  # at least k: every part gives that many, or all of its rows
    if count == k:
        return rows
    scores, read = np.empty(rows.shape, np.float32), np.maximum(rows, 0, dtype=np.int64)
    arrays = [faiss.swig_ptr(array) for array in (scores, queries, embeddings, read)]
    faiss.fvec_inner_products_by_idx(*arrays, queries.shape[1], len(queries), count)
    scores[rows < 0] = -np.inf
    return np.take_along_axis(rows, np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)


def _search_part(
    part: Part,
    queries: Float[np.ndarray, "Q D"],
    rotated: Float[np.ndarray, "Q D"],
    k: int,
    effort: int | None,
) -> Int[np.ndarray, "Q c"]:
    import faiss

    size = len(part.rows)
    if part.index is None:
        return part.rows[_compare_all(part.embeddings, queries, min(k, size))]
    if isinstance(part.index, faiss.IndexHNSW):
        options = faiss.SearchParametersHNSW(efSearch=max(effort or _EXPLORED, 2 * k))
        found = part.index.search(queries, min(k, size), params=options)[1]
    else:
        probed = effort or max(_FEWEST_PROBED, part.index.nlist // _PROBED)
        probed = min(probed, part.index.nlist)
        options = {"nprobe": probed}
        if isinstance(part.index, faiss.IndexIVFRaBitQ):
            options = faiss.IVFRaBitQSearchParameters(**options, qb=_QUERY_BITS)
        else:
            options = faiss.SearchParametersIVF(**options)
        count = min(size, max(_FEWEST_RESCORED, _RESCORED * k, probed))
        found = part.index.search(rotated, count, params=options)[1]
    return np.where(found < 0, np.int32(-1), part.rows[found])


def _compare_all(
    embeddings: Float[np.ndarray, "N D"], queries: Float[np.ndarray, "Q D"], k: int
) -> Int[np.ndarray, "Q k"]:
    import faiss

    rows = faiss.knn(queries, embeddings, k, faiss.METRIC_INNER_PRODUCT)[1]
    if rows.min() < 0:
        raise RagJaxError("dot products of embeddings and queries are beyond float32: scale them")
    return rows.astype(np.int32)
