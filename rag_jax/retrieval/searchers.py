"""Backends of an index: exhaustive search on the devices, and approximate search by ScaNN.

Both backends return rows without scores, in any order. `Index` computes the scores.
"""

import functools
import logging
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from rag_jax.data.batches import round_up
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.outside import is_there, parsing, require_file

# The number of queries is padded to one of these counts, and `k` to a power of two, so that few
# programs are compiled.
_QUERY_COUNTS = (1, 8, 64)
# Expected share of a shard's largest dot products that a TPU finds.
_RECALL = 0.99
# ScaNN's guide ("ScaNN Algorithms and Configuration", rules of thumb) recommends brute force below
# the first size, asymmetric hashing below the second, and partitions for larger sizes.
_HASH_FROM, _PARTITION_FROM = 20_000, 100_000
# What ScaNN writes of its files, which it looks for wherever this says.
_ASSET = r'assets {\s*asset_type: [A-Z_]+\s*asset_path: "([\w.]+)"\s*}\s*'
_LARGEST_ASSETS = 1 << 16  # bytes
_ASSETS, _HASHED, _LEAVES = "scann_assets.pbtxt", "hashed_dataset.npy", "datapoint_to_token.npy"
# Dimensions that one code stands for, and number of codes.
_CODED, _CODES = 2, 16
# A row is long if it is so many times as long as the median; up to this number of long rows are
# compared exactly with every query.
_LONG, _MOST_LONG = 3, 256

_logger = logging.getLogger(__name__)


def place_exact(embeddings: Float[np.ndarray, "N D"]) -> Float[Array, "S n D"]:
    """Moves the embeddings to the mesh in effect, in shards of equal size, one per device.

    The last shards are padded with zero rows. `find_top` ignores the padding by its argument
    `size`.
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
    """Number of rows of each of `parts` shards of `size` embeddings, padding included.

    The number is rounded up by at most a sixteenth, so that indices of a similar size have shards
    of the same shape. Numbers below 32 are not rounded.
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
    """Rows of the `k` largest dot products, largest first. To be called within `jax.jit`.

    Each device searches its own shard, and only the best rows of each shard are gathered. On TPUs
    the best rows of a shard are found by `jax.lax.approx_max_k` (Chern et al. 2022), which misses
    one in a hundred. On other devices the search is exact, and equal dot products are in the order
    of the rows.

    Args:
        shards: embeddings by `place_exact`. As an argument of the jitted function, the shards can
            be replaced by those of another index with the same shape without a compilation.
        k: number of rows per query, at most the number of rows of all shards. If `k` exceeds
            `size`, the last rows are padding.
        size: number of embeddings without padding, N. As an array, the size can also change without
            a compilation.
    """
    parts, shard_rows, _ = shards.shape
    search = functools.partial(_search_shards, k=min(k, shard_rows))
    first = jnp.arange(parts, dtype=jnp.int32) * shard_rows
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
    # [Q, S, k] -> [Q, S * k]
    scores, rows = (array.reshape(len(queries), -1) for array in best)
    if parts == 1:
        return rows
    return jnp.take_along_axis(rows, jax.lax.top_k(scores, k)[1], axis=1)


def _search_shards(
    shards: Float[Array, "s n D"],
    queries: Float[Array, "Q D"],
    first: Int[Array, "s"],
    end: Int[Array, ""],
    *,
    k: int,
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """Scores and rows of each shard's best; shards begin at rows `first`, padding at row `end`."""
    parts, shard_rows, width = shards.shape
    # [s, n, D] -> [D, s * n]
    flat = shards.reshape(-1, width).T
    # Highest precision, because TPUs would round both factors to bfloat16.
    scores = jnp.matmul(queries, flat, precision=jax.lax.Precision.HIGHEST)
    scores = scores.reshape(len(queries), parts, shard_rows)
    row_mask = first[:, None] + jnp.arange(shard_rows, dtype=jnp.int32)[None] < end
    scores = jnp.where(row_mask[None], scores, -jnp.inf)
    best_scores, positions = jax.lax.platform_dependent(
        scores,
        tpu=lambda x: tuple(jax.lax.approx_max_k(x, k, recall_target=_RECALL)),
        default=lambda x: tuple(jax.lax.top_k(x, k)),
    )
    return best_scores, positions + first[None, :, None]


_find_top = jax.jit(find_top, static_argnames="k")


def search_exact(
    shards: Float[Array, "S n D"], queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of the `k` largest dot products, largest first. Equal ones are in the order of the rows.

    `shards` come from `place_exact`, and `k` is at most the number `size` of embeddings. One
    program is compiled for each of three numbers of queries and each power of two that `k` is
    rounded up to.
    """
    capacity = shards.shape[0] * shards.shape[1]
    results, start = [], 0
    while start < len(queries):
        count = next((c for c in _QUERY_COUNTS if c >= len(queries) - start), _QUERY_COUNTS[-1])
        batch = queries[start : start + count]
        padded = np.zeros((count, queries.shape[1]), np.float32)
        padded[: len(batch)] = batch
        rows = _find_top(shards, padded, k=min(capacity, 1 << (k - 1).bit_length()), size=size)
        results.append(fetch(rows)[: len(batch), :k])
        start += count
    return np.concatenate(results)


class Scann(NamedTuple):
    """ScaNN's searcher, and the few long rows that it would not represent well.

    The codes of hashing are fitted to all rows, and one row that is 100 times as long as the others
    takes codes from all of them. Long rows are therefore hashed at the median length, and compared
    with every query beside ScaNN.
    """

    searcher: Any
    long_rows: Int[np.ndarray, "m"]
    long_embeddings: Float[np.ndarray, "m D"]


def build_scann(embeddings: Float[np.ndarray, "N D"]) -> Scann:
    """Builds a ScaNN searcher without ids, with settings by the number of float32 embeddings.

    The same embeddings give the same searcher to the bit, on any number of threads.
    """
    from scann import scann_ops_pybind

    size = len(embeddings)
    long_rows, factors = _find_long(embeddings)
    hashed = embeddings
    if len(long_rows):
        hashed = embeddings.copy()
        hashed[long_rows] *= factors[:, None]
    # 10 is the default number of neighbours, which every search overrides.
    builder = scann_ops_pybind.builder(hashed, 10, "dot_product")
    if size < _HASH_FROM:
        return Scann(builder.score_brute_force().build(), long_rows, embeddings[long_rows])
    if size >= _PARTITION_FROM:
        leaves = math.isqrt(size)
        # Of ScaNN's two ways to choose the first centres, k-means++ alone has a seed of its own.
        builder = builder.tree(leaves, max(1, leaves // 10), random_init=False)
    # 0.2 is the threshold that Guo et al. (2020) use for vectors of length 1.
    builder = builder.score_ah(_CODED, anisotropic_quantization_threshold=0.2).reorder(100)
    return Scann(builder.build(), long_rows, embeddings[long_rows])


def _find_long(
    embeddings: Float[np.ndarray, "N D"],
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """The long rows, and the factors that bring them to the median length; none without hashing.

    Rows of length 0 do not count. If very many rows are long, none is treated apart: a warning says
    that passages may be missed.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if len(embeddings) < _HASH_FROM:
        return nothing
    lengths = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    median = np.median(lengths[lengths > 0]) if lengths.any() else 0.0
    rows = np.flatnonzero(lengths > _LONG * median)
    if len(rows) <= _MOST_LONG:
        return rows, (median / lengths[rows]).astype(np.float32)
    _logger.warning(
        "%d of %d embeddings are over %d times as long as the median: ScaNN may miss passages; "
        "use the backend 'exact', or an encoder that normalises its embeddings",
        len(rows),
        len(embeddings),
        _LONG,
    )
    return nothing


def search_scann(
    index: Scann, queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of approximately the `k <= size` largest dot products. Always `k` different rows."""
    search = index.searcher.search_batched_parallel
    if size < _HASH_FROM:
        return _check_rows(search(queries, k)[0], size)
    rows, scores = search(queries, k, min(size, max(100, 10 * k)))
    # If the searched partitions hold fewer than k rows, ScaNN pads with row 0 and a score of NaN.
    # These queries are searched again in all partitions.
    is_short = np.isnan(scores).any(axis=1)
    if is_short.any():
        leaves = math.isqrt(size)
        rows[is_short], scores[is_short] = search(queries[is_short], k, size, leaves)
    if len(index.long_rows):
        scores = np.where(np.isin(rows, index.long_rows), -np.inf, scores)
        others = np.broadcast_to(index.long_rows, (len(rows), len(index.long_rows)))
        rows = np.concatenate([rows, others], axis=1)
        # [Q, D] x [m, D] -> [Q, m]
        scores = np.concatenate([scores, queries @ index.long_embeddings.T], axis=1)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        rows = np.take_along_axis(rows, best, axis=1)
    return _check_rows(rows, size)


def _check_rows(rows: Int[np.ndarray, "Q k"], size: int) -> Int[np.ndarray, "Q k"]:
    """Refuses rows beyond the embeddings, which ScaNN finds if its files contradict them."""
    if rows.max() >= size or rows.min() < 0:
        raise RagJaxError(
            f"ScaNN found row {rows.max()} among {size} embeddings: its files are of another "
            "index; build the index again"
        )
    return rows.astype(np.int32)


def load_scann(folder: Path, embeddings: Float[np.ndarray, "N D"]) -> Scann:
    """Reads the files that the `serialize` method of a ScaNN searcher wrote.

    ScaNN's loader would unpickle a file of ids. The caller must make sure that the folder has none.

    Raises:
        RagJaxError: ScaNN cannot read the files, such as those of another version, or they name
            files elsewhere or contradict the embeddings.
    """
    from scann import scann_ops_pybind

    with parsing(folder, "is no index that ScaNN can read", "build the index again"):
        _check_assets(folder, *embeddings.shape)
        searcher = scann_ops_pybind.load_searcher(str(folder), assets_backcompat_shim=False)
    long_rows, _ = _find_long(embeddings)
    return Scann(searcher, long_rows, embeddings[long_rows])


def _check_assets(folder: Path, size: int, width: int) -> None:
    """Raises a ValueError if ScaNN would read files elsewhere, or beyond the ends of its arrays."""
    require_file(folder / _ASSETS, largest=_LARGEST_ASSETS)
    text = (folder / _ASSETS).read_text("utf-8")
    if not re.fullmatch(f"({_ASSET})+", text):
        raise ValueError(f"{_ASSETS} is not as ScaNN writes it, or names a file elsewhere")
    for name in (match[1] for match in re.finditer(_ASSET, text)):
        require_file(folder / name)
    codes = (size, -(-width // _CODED)), _CODES
    for name, (shape, end) in {_HASHED: codes, _LEAVES: ((size,), math.isqrt(size))}.items():
        if not is_there(folder / name):
            continue
        array = map_array(folder / name)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}, not {list(shape)}")
        if array.min() < 0 or array.max() >= end:
            raise ValueError(f"{name} has numbers that are not from 0 to {end - 1}")
