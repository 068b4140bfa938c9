"""Exhaustive search of an index on the devices, over float32, float16 or int8."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Int8, Num

from rag_jax.data.batches import round_up
from rag_jax.runtime.hosts import fetch

# The number of queries is padded to one of these counts, and `k` to a power of two, so that few
# programs are compiled. The last is for full batches only, and where it has no more scores at once
# than this: a product of 256 queries took two thirds of the CPU time of four of 64 each.
_QUERY_COUNTS, _LARGE_COUNT, _MOST_SCORES = (1, 8, 64), 256, 1 << 25
# Expected share of a shard's largest dot products that a TPU finds.
_RECALL = 0.99
# Neighbouring rows that a CPU first compares by their largest score alone, in shards of this size
# and larger: selecting among all scores runs on one core and takes as long as the product on two.
_GROUP, _GROUPED_FROM = 16, 4096
# Rows of float16 or int8 that are there as float32 at a time, at most.
_CONVERTED_TOGETHER = 8192


class Int8Shards(NamedTuple):
    """Shards of int8 embeddings, and what the numbers of each row are multiplied by."""

    values: Int8[Array, "S D n"]
    scales: Float[Array, "S n"]


# With their rows along the last axis: eight queries times these took three quarters of the CPU time
# of queries times rows, as XLA's product on CPUs is slower with a factor that is transposed.
Shards = Float[Array, "S D n"] | Int8Shards


def place_exact(
    values: Num[np.ndarray, "N D"], scales: Float[np.ndarray, "N"] | None = None
) -> Shards:
    """Moves embeddings to the mesh in effect, in shards of equal size, one per device.

    The last shards are padded with rows of zeros. `find_top` ignores the padding by its argument
    `size`.

    Args:
        scales: what int8 embeddings are multiplied by, for each row.
    """
    placed = _place_rows(values, grouped=values.dtype == np.float32)
    return placed if scales is None else Int8Shards(placed, _place_rows(scales))


def _place_rows(
    array: Num[np.ndarray, "N *rest"], *, grouped: bool = False
) -> Num[Array, "S *rest n"]:
    mesh = jax.sharding.get_mesh()
    parts = max(mesh.size, 1)
    rows = count_shard_rows(len(array), parts)

    group = _count_group(rows) if grouped else 1

    def pad(shard: Num[np.ndarray, "m *rest"]) -> Num[np.ndarray, "*rest n"]:
        # The first rows of all groups, then the second ones: [m, D] -> [D, group, n / group]
        apart = np.zeros((*shard.shape[1:], group, rows // group), shard.dtype)
        for i in range(group):
            own = shard[i::group].T
            apart[..., i, : own.shape[-1]] = own
        return apart.reshape(*shard.shape[1:], rows)

    if parts == 1:
        return jnp.asarray(pad(array)[None])

    def read(index: tuple[slice, ...]) -> Num[np.ndarray, "s *rest n"]:
        return np.stack([pad(array[i * rows : (i + 1) * rows]) for i in range(parts)[index[0]]])

    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((parts, *array.shape[1:], rows), sharding, read)


def count_shard_rows(size: int, parts: int) -> int:
    """Number of rows of each of `parts` shards of `size` embeddings, padding included.

    The number is rounded up by at most a sixteenth, so that indices of a similar size have shards
    of the same shape. Numbers below 32 are not rounded.
    """
    rows = -(-size // parts)
    return round_up(rows, 1 << max(0, rows.bit_length() - 5))


def _count_group(shard_rows: int) -> int:
    """Number of neighbouring rows that lie in a float32 shard a step apart; 1 for none."""
    return _GROUP if shard_rows >= _GROUPED_FROM else 1


def find_top(
    shards: Shards,
    queries: Float[Array, "Q D"],
    *,
    k: int,
    size: int | Int[Array, ""],
) -> Int[Array, "Q k"]:
    """Rows of the `k` largest dot products, largest first. To be called within `jax.jit`.

    Each device searches its own shard, and only the best rows of each shard are gathered. On TPUs
    the best rows of a float32 shard are found by `jax.lax.approx_max_k` (Chern et al. 2022), which
    misses one in a hundred. Otherwise the search is exact, and equal dot products are in the order
    of the rows. Shards of float16 or int8 are converted to float32 a block of rows at a time.

    Args:
        shards: embeddings by `place_exact`. As an argument of the jitted function, the shards can
            be replaced by those of another index with the same shape without a compilation.
        k: number of rows per query, at most the number of rows of all shards. If `k` exceeds
            `size`, the last rows mean nothing.
        size: number of embeddings without padding, N. As an array, the size can also change without
            a compilation.
    """
    parts, _, shard_rows = _get_values(shards).shape
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
    shards: Shards,
    queries: Float[Array, "Q D"],
    first: Int[Array, "s"],
    end: Int[Array, ""],
    *,
    k: int,
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """Scores and rows of each shard's best; shards begin at rows `first`, padding at row `end`."""
    values = _get_values(shards)
    if values.dtype != jnp.float32:
        return _search_blocks(shards, queries, first, end, k=k)
    scores, choices = _multiply(values, queries), {"tpu": _approximate, "default": _select}
    if _count_group(values.shape[-1]) > 1 and 4 * (k + 1) * _GROUP <= values.shape[-1]:
        choices["cpu"] = _select_by_group
    choices = {platform: functools.partial(choice, k=k) for platform, choice in choices.items()}
    return jax.lax.platform_dependent(scores, first, end, **choices)


def _select(
    scores: Float[Array, "Q s n"], first: Int[Array, "s"], end: Int[Array, ""], *, k: int
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """The largest scores and their rows; equal ones in the order of the rows."""
    count, parts, shard_rows = scores.shape
    # [Q, s, group, n / group] -> [Q, s, n], in the order of the rows
    scores = scores.reshape(count, parts, _count_group(shard_rows), -1).swapaxes(2, 3)
    scores = _mask_padding(scores.reshape(count, parts, shard_rows), first, end)
    best_scores, rows = jax.lax.top_k(scores, k)
    return best_scores, rows + first[None, :, None]


def _approximate(
    scores: Float[Array, "Q s n"], first: Int[Array, "s"], end: Int[Array, ""], *, k: int
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """Most of the largest scores, as TPUs find them, and their rows."""
    group = _count_group(scores.shape[-1])
    places = jnp.arange(scores.shape[-1], dtype=jnp.int32).reshape(-1, group).T.reshape(-1)
    is_real = first[:, None] + places[None] < end
    scores = jnp.where(is_real[None], scores, -jnp.inf)
    best_scores, positions = jax.lax.approx_max_k(scores, k, recall_target=_RECALL)
    return best_scores, places[positions] + first[None, :, None]


def _select_by_group(
    scores: Float[Array, "Q s n"], first: Int[Array, "s"], end: Int[Array, ""], *, k: int
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """As `_select`: the best rows are in the groups with the `k` largest maxima, first come first.

    A group of which some rows are padding may have too large a maximum, hence one group more.
    """
    count, parts, shard_rows = scores.shape
    groups = shard_rows // _GROUP
    within = jnp.arange(_GROUP, dtype=jnp.int32)[None, None, None]
    apart = scores.reshape(count, parts, _GROUP, groups)
    # Not `max`, which XLA does not vectorise on CPUs.
    maxima = functools.reduce(jnp.maximum, [apart[:, :, i] for i in range(_GROUP)])
    begins = first[:, None] + _GROUP * jnp.arange(groups, dtype=jnp.int32)[None]
    maxima = jnp.where((begins < end)[None], maxima, -jnp.inf)
    chosen = jnp.sort(jax.lax.top_k(maxima, k + 1)[1], axis=-1)[..., None]
    # [Q, s, k + 1, group] -> [Q, s, (k + 1) * group]
    places = (chosen + groups * within).reshape(count, parts, -1)
    rows = (chosen * _GROUP + within).reshape(count, parts, -1) + first[None, :, None]
    found = jnp.where(rows < end, jnp.take_along_axis(scores, places, axis=-1), -jnp.inf)
    best_scores, best = jax.lax.top_k(found, k)
    return best_scores, jnp.take_along_axis(rows, best, axis=-1)


def _search_blocks(
    shards: Shards,
    queries: Float[Array, "Q D"],
    first: Int[Array, "s"],
    end: Int[Array, ""],
    *,
    k: int,
) -> tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]]:
    """As `_search_shards`, with only one block of each shard in float32 at a time."""
    values = _get_values(shards)
    parts, _, shard_rows = values.shape
    # The largest power of two that divides the rows; see `count_shard_rows`.
    block = shard_rows
    if shard_rows > _CONVERTED_TOGETHER:
        block = min(_CONVERTED_TOGETHER, shard_rows & -shard_rows)

    def merge(
        best: tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]], start: Int[Array, ""]
    ) -> tuple[tuple[Float[Array, "Q s k"], Int[Array, "Q s k"]], None]:
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block, axis=-1
        )
        scores = _multiply(cut(values).astype(jnp.float32), queries)
        if isinstance(shards, Int8Shards):
            scores = scores * cut(shards.scales)[None]
        scores = _mask_padding(scores, first + start, end)
        rows = (first + start)[:, None] + jnp.arange(block, dtype=jnp.int32)[None]
        # [Q, s, k], [Q, s, b] -> [Q, s, k + b]
        rows = jnp.concatenate([best[1], jnp.broadcast_to(rows[None], scores.shape)], axis=-1)
        scores, places = jax.lax.top_k(jnp.concatenate([best[0], scores], axis=-1), k)
        return (scores, jnp.take_along_axis(rows, places, axis=-1)), None

    # Made of `first`, so that within `shard_map` it differs between devices, as what replaces it.
    rows = jnp.broadcast_to(first[None, :, None], (len(queries), parts, k))
    nothing = jnp.where(rows < 0, 0.0, -jnp.inf), rows
    return jax.lax.scan(merge, nothing, jnp.arange(0, shard_rows, block, dtype=jnp.int32))[0]


def _multiply(values: Float[Array, "s D n"], queries: Float[Array, "Q D"]) -> Float[Array, "Q s n"]:
    parts, width, shard_rows = values.shape
    # [s, D, n] -> [D, s * n]
    flat = values.swapaxes(0, 1).reshape(width, -1)
    # Highest precision, because TPUs would round both factors to bfloat16.
    scores = jnp.matmul(queries, flat, precision=jax.lax.Precision.HIGHEST)
    return scores.reshape(len(queries), parts, shard_rows)


def _mask_padding(
    scores: Float[Array, "Q s n"], first: Int[Array, "s"], end: Int[Array, ""]
) -> Float[Array, "Q s n"]:
    rows = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.where((first[:, None] + rows[None] < end)[None], scores, -jnp.inf)


def _get_values(shards: Shards) -> Num[Array, "S D n"]:
    return shards.values if isinstance(shards, Int8Shards) else shards


_find_top = jax.jit(find_top, static_argnames="k")


def search_exact(
    shards: Shards, queries: Float[np.ndarray, "Q D"], k: int, size: int
) -> Int[np.ndarray, "Q k"]:
    """Rows of the `k` largest dot products, largest first. Equal ones are in the order of the rows.

    `shards` come from `place_exact`, and `k` is at most the number `size` of embeddings. One
    program is compiled for each of four numbers of queries and each power of two that `k` is
    rounded up to.
    """
    parts, width, shard_rows = _get_values(shards).shape
    capacity = parts * shard_rows
    found, start = [], 0
    while start < len(queries):
        count = _count_queries(len(queries) - start, capacity)
        batch = queries[start : start + count]
        padded = np.zeros((count, width), np.float32)
        padded[: len(batch)] = batch
        rows = _find_top(shards, padded, k=min(capacity, 1 << (k - 1).bit_length()), size=size)
        found.append(rows)
        # The next program may begin beside the end of this one, which keeps fewer cores busy.
        if len(found) > 1:
            found[-2] = fetch(found[-2])
        start += count
    return np.concatenate([fetch(rows) for rows in found])[: len(queries), :k]


def _count_queries(remaining: int, capacity: int) -> int:
    """Number of queries, padding included, that the next program takes of the remaining ones."""
    if remaining >= _LARGE_COUNT and _LARGE_COUNT * capacity <= _MOST_SCORES:
        return _LARGE_COUNT
    return next((count for count in _QUERY_COUNTS if count >= remaining), _QUERY_COUNTS[-1])
