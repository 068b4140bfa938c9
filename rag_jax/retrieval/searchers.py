"""The two ways an index finds rows: among all of them on the devices, or by ScaNN.

Both give rows without scores, in any order: `Index` computes the scores.
"""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rag_jax.data.batches import round_up
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch

# Queries are padded to one of these counts, and `k` to a power of two, so that few programs are
# compiled.
_QUERY_COUNTS = (1, 8, 64)
# Expected share of the largest that a TPU finds in a shard.
_RECALL = 0.99
# ScaNN's guide ("ScaNN Algorithms and Configuration", rules of thumb) scores below the first
# size by brute force, below the second by asymmetric hashing, above it within partitions.
_HASH_FROM, _PARTITION_FROM = 20_000, 100_000


def place_exact(embeddings: Float[np.ndarray, "N D"]) -> Float[Array, "S n D"]:
    """The embeddings in equal shards, one on each device of the mesh in effect.

    Zeros fill the last shards; `find_top` is told where they begin.
    """
    mesh = jax.sharding.get_mesh()
    parts = max(mesh.size, 1)
    size, width = embeddings.shape
    rows = count_shard_rows(size, parts)
    if parts == 1:
        return jnp.asarray(np.pad(embeddings, ((0, rows - size), (0, 0)))[None])

    def read(index: tuple[slice, ...]) -> Float[np.ndarray, "s n D"]:
        shards = [embeddings[i * rows : (i + 1) * rows] for i in range(parts)[index[0]]]
        return np.stack([np.pad(shard, ((0, rows - len(shard)), (0, 0))) for shard in shards])

    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((parts, rows, width), sharding, read)


def count_shard_rows(size: int, parts: int) -> int:
    """Rows of each of `parts` shards that `size` embeddings are split into.

    They are rounded up, by a sixteenth at most and less than 32 not at all, so that indices of
    nearly the same size have shards of the same shape.
    """
    rows = -(-size // parts)
    return round_up(rows, 1 << max(0, rows.bit_length() - 5))


def find_top(
    shards: Float[Array, "S n D"],
    queries: Float[Array, "Q D"],
    *,
    k: int,
    size: int | Int[Array, ""],
) -> Int[Array, "Q k"]:
    """Rows of the `k` largest dot products, largest first; made to be called within `jax.jit`.

    Each device searches its own shard, and only each shard's best meet. On TPU a shard's best are
    found by `jax.lax.approx_max_k` (Chern et al. 2022), which misses one in a hundred; elsewhere
    they are exact, and equal ones come in the order of their rows.

    Args:
        shards: by `place_exact`. Passed to the jitted function as an argument, another index's
            with the same shape can take their place without compiling.
        k: at most the shards' rows. Beyond `size`, the rows that come are filling.
        size: number of rows that are no filling, N; an array, so that it may change too.
    """
    parts, rows, _ = shards.shape
    search = functools.partial(_search_shards, k=min(k, rows))
    first = jnp.arange(parts, dtype=jnp.int32) * rows
    end = jnp.asarray(size, jnp.int32)
    mesh = jax.sharding.get_abstract_mesh()
    if parts > 1 and parts == mesh.size:
        split = PartitionSpec(mesh.axis_names)
        search = jax.shard_map(
            search,
            in_specs=(split, PartitionSpec(), split, PartitionSpec()),
            out_specs=PartitionSpec(None, mesh.axis_names),
        )
    best = search(shards, queries, first, end)
    scores, found = (array.reshape(len(queries), -1) for array in best)
    if parts == 1:
        return found
    return jnp.take_along_axis(found, jax.lax.top_k(scores, k)[1], axis=1)


def _search_shards(
    shards: Float[Array, "s n D"],
    queries: Float[Array, "Q D"],
    first: Int[Array, "s"],
    end: Int[Array, ""],
    *,
    k: int,
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """The best `k` of every shard, as scores and rows.

    `first` are the shards' first rows; from row `end` on they are filling.
    """
    count, rows, width = shards.shape
    # Full precision: TPUs would round both factors to bfloat16.
    flat = shards.reshape(-1, width).T
    scores = jnp.matmul(queries, flat, precision=jax.lax.Precision.HIGHEST)
    scores = scores.reshape(len(queries), count, rows)
    real = first[:, None] + jnp.arange(rows, dtype=jnp.int32)[None] < end
    scores = jnp.where(real[None], scores, -jnp.inf)
    best, found = jax.lax.platform_dependent(
        scores,
        tpu=lambda x: tuple(jax.lax.approx_max_k(x, k, recall_target=_RECALL)),
        default=lambda x: tuple(jax.lax.top_k(x, k)),
    )
    return best, found + first[None, :, None]


_find_top = jax.jit(find_top, static_argnames="k")


def search_exact(
    shards: Float[Array, "S n D"], queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of the `k` largest dot products, largest first; equal ones in the order of their rows.

    Args:
        shards: by `place_exact`.
        queries: any number of them; a program is compiled for each of three counts and each power
            of two that `k` is rounded up to.
        k: at most `size`.
        size: number of embeddings, N.
    """
    capacity = shards.shape[0] * shards.shape[1]
    found, start = [], 0
    while start < len(queries):
        count = next((c for c in _QUERY_COUNTS if c >= len(queries) - start), _QUERY_COUNTS[-1])
        part = queries[start : start + count]
        padded = np.zeros((count, queries.shape[1]), np.float32)
        padded[: len(part)] = part
        rows = _find_top(shards, padded, k=min(capacity, 1 << (k - 1).bit_length()), size=size)
        found.append(fetch(rows)[: len(part), :k])
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
