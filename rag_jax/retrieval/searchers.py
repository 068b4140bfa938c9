"""The two ways an index finds rows: all of them on the device, or approximately by ScaNN.

Both give rows without scores, in any order: `Index` computes the scores.
"""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.errors import RagJaxError

# Queries are padded to one of these counts, and `k` to a power of two, so that few programs are
# compiled.
_QUERY_COUNTS = (1, 8, 64)
# ScaNN's guide ("ScaNN Algorithms and Configuration", rules of thumb) scores below the first
# size by brute force, below the second by asymmetric hashing, above it within partitions.
_HASH_FROM, _PARTITION_FROM = 20_000, 100_000


@functools.partial(jax.jit, static_argnames="k")
def _find_top(
    embeddings: Float[Array, "N D"], queries: Float[Array, "Q D"], k: int
) -> Int[Array, "Q k"]:
    # Full precision: TPUs would round both factors to bfloat16.
    scores = jnp.matmul(queries, embeddings.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(scores, k)[1]


def search_exact(
    embeddings: Float[Array, "N D"], queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of the `k` largest dot products, largest first; equal ones in the order of their rows.

    Args:
        embeddings: on the device.
        queries: any number of them; a program is compiled for each of three counts and each power
            of two that `k` is rounded up to.
        k: at most `size`.
        size: number of embeddings, N.
    """
    found, start = [], 0
    while start < len(queries):
        count = next((c for c in _QUERY_COUNTS if c >= len(queries) - start), _QUERY_COUNTS[-1])
        part = queries[start : start + count]
        padded = np.zeros((count, queries.shape[1]), np.float32)
        padded[: len(part)] = part
        rows = _find_top(embeddings, padded, min(size, 1 << (k - 1).bit_length()))
        found.append(np.asarray(rows)[: len(part), :k])
        start += count
    return np.concatenate(found)


def build_scann(embeddings: Float[np.ndarray, "N D"]) -> Any:
    """A ScaNN searcher over float32 embeddings, set up by their number; it keeps no ids."""
    from scann import scann_ops_pybind

    size = len(embeddings)
    # The number of neighbours is given anew at every search.
    builder = scann_ops_pybind.builder(embeddings, 10, "dot_product")
    if size < _HASH_FROM:
        return builder.score_brute_force().build()
    if size >= _PARTITION_FROM:
        leaves = math.isqrt(size)
        builder = builder.tree(leaves, max(1, leaves // 10))
    # 0.2 is the threshold that Guo et al. (2020) use for vectors of length one.
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()


def search_scann(
    searcher: Any, queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of nearly the `k` largest dot products: always `k` different rows.

    Args:
        searcher: by `build_scann` or `load_scann`.
        queries: float32.
        k: at most `size`.
        size: number of embeddings the searcher was built over.
    """
    if size < _HASH_FROM:
        return searcher.search_batched_parallel(queries, k)[0].astype(np.int32)
    rows, scores = searcher.search_batched_parallel(queries, k, min(size, max(100, 10 * k)))
    # Where the partitions searched hold fewer than k rows, ScaNN fills up with row 0 and NaN.
    short = np.isnan(scores).any(axis=1)
    if short.any():
        again = searcher.search_batched_parallel(queries[short], k, size, math.isqrt(size))
        rows[short] = again[0]
    return rows.astype(np.int32)


def load_scann(folder: Path) -> Any:
    """Reads the files that a searcher's `serialize` wrote.

    ScaNN's loader would unpickle a file of ids if there were one: the caller makes sure that there
    is none.

    Raises:
        RagJaxError: another version of ScaNN wrote them.
    """
    from scann import scann_ops_pybind

    try:
        return scann_ops_pybind.load_searcher(str(folder), assets_backcompat_shim=False)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RagJaxError(f"ScaNN cannot read {folder}: {reason}: build it again") from None
