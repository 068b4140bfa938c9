"""Sliding windows: attention of each token to the last few tokens of its text alone.

A window counts the tokens that a token may attend to, not slots: padding may stand anywhere, and
several texts may share a row. A chunk of few tokens takes a mask over all slots, of which it reads
those that `window_slots` finds. A longer one is cut into blocks of tokens, each with the keys that
its windows reach, so that the scores of `T` tokens are `T` times a little more than the window, and
not `T` times `T`.

The letters in shapes are those of `rag_jax.models.nn.layers`; `n` is the number of blocks, `b` of
a block's tokens and `w` of a window's.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.attention import MASKED, SegmentMask
from rag_jax.models.nn.window_slots import WindowSlots, find_slots

_BLOCKS_PER_WINDOW = 4  # the smaller the blocks, the less their windows overlap in vain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowBlocks:
    """The tokens of a chunk in blocks, and the slots that each block's windows reach.

    Attributes:
        queries: column in the chunk of each token, text by text and without padding between.
        keys: slots of the row, those of its prefix first.
        mask: attention mask of the blocks.
        places: the place of each column of the chunk in `queries`, counted over all blocks.
    """

    queries: Int[Array, "B n b"]
    keys: Int[Array, "B n w+b"]
    mask: Bool[Array, "B n b w+b"]
    places: Int[Array, "B T"]


def limit_to_window(
    mask: Bool[Array, "B T S"] | SegmentMask,
    window: int,
    *,
    width: int,
    token_mask: Bool[Array, "B S"] | None,
    segments: Int[Array, "B S"] | None = None,
    slot: Int[Array, ""] | int = 0,
    prefix_mask: Bool[Array, "P L"] | None = None,
) -> tuple[
    Bool[Array, "B T S"] | SegmentMask | WindowBlocks | WindowSlots,
    Bool[Array, "P L"] | Bool[Array, "B T L"] | None,
]:
    """What a chunk of `width` tokens attends to in a sliding layer, of the row and of its prefix.

    Blocks and slots hold what is attended to of the prefix.

    Args:
        mask: what it attends to in a layer without a window.
        token_mask: of all slots of the row, if tokens attend to all earlier ones of their text;
            None if `mask` alone says to which.
        segments: number of each token's text, where a chunk that is its whole row has several.
        slot: first slot of the chunk.
    """
    if token_mask is None or width <= window:
        length = 0 if prefix_mask is None else prefix_mask.shape[1]
        if isinstance(mask, SegmentMask) or mask.shape[2] + length <= window:
            return mask, prefix_mask
        limited = limit_mask(mask, window, prefix_mask)
        found = find_slots(*limited, window, slot)
        return limited if found is None else (found, None)
    if isinstance(mask, SegmentMask) and mask.kernel == "splash":
        return replace(mask, window=window), None
    if prefix_mask is not None:
        before = jnp.repeat(prefix_mask, len(token_mask) // len(prefix_mask), axis=0)
        token_mask, slot = jnp.concatenate([before, token_mask], axis=1), slot + before.shape[1]
    return cut_blocks(token_mask, slot, width, window, segments), prefix_mask


def limit_mask(
    mask: Bool[Array, "B T S"], window: int, prefix_mask: Bool[Array, "P L"] | None
) -> tuple[Bool[Array, "B T S"], Bool[Array, "B T L"] | None]:
    """An attention mask without the slots beyond each token's window, and the same of the prefix.

    Args:
        mask: True where a token may look; its own slot is the last of these.
    """
    behind = jax.lax.cumsum(mask.astype(jnp.int32), axis=2, reverse=True)  # that slot's included
    limited = mask & (behind <= window)
    if prefix_mask is None:
        return limited, None
    times = len(mask) // len(prefix_mask)
    before = jax.lax.cumsum(prefix_mask.astype(jnp.int32), axis=1, reverse=True)
    before, prefix_mask = (jnp.repeat(x, times, axis=0)[:, None] for x in (before, prefix_mask))
    return limited, prefix_mask & (mask.sum(axis=2, keepdims=True) + before <= window)


def limit_to_both_sides(
    mask: Bool[Array, "B #T T"],
    window: int,
    *,
    positions: Int[Array, "B T"],
    prefix_mask: None = None,
) -> tuple[Bool[Array, "B T T"], None]:
    """What the tokens of whole rows attend to if later ones count too: those less than it away."""
    distance = jnp.abs(positions[:, :, None] - positions[:, None, :])
    return mask & (distance < window), prefix_mask


def cut_blocks(
    token_mask: Bool[Array, "B S"],
    slot: Int[Array, ""] | int,
    width: int,
    window: int,
    segments: Int[Array, "B S"] | None = None,
) -> WindowBlocks:
    """Cuts a chunk that attends to its row's earlier tokens into blocks.

    Args:
        token_mask: of all slots of the row, those of a prefix first.
        slot: first slot of the chunk.
        width: number of tokens `T` of the chunk.
        segments: number of each token's text, where a chunk that is its whole row has several.
    """
    rows, slots = token_mask.shape
    block = -(-window // _BLOCKS_PER_WINDOW)
    count = -(-width // block)
    texts = jnp.zeros((rows, slots), jnp.int32) if segments is None else segments
    texts = jnp.where(token_mask, texts, jnp.iinfo(jnp.int32).max)  # padding comes last
    order = jnp.argsort(texts, axis=1, stable=True)
    columns = jnp.argsort(jax.lax.dynamic_slice_in_dim(texts, slot, width, 1), axis=1, stable=True)
    places = jnp.argsort(columns, axis=1)
    columns = jnp.pad(columns, ((0, 0), (0, count * block - width)))
    # Ranks count a row's tokens; a block's queries follow one another, after `before` others.
    before = (token_mask & (jnp.arange(slots) < slot)[None]).sum(axis=1)
    starts = before[:, None] + block * jnp.arange(count)[None]  # [B, n]
    ranks = starts[:, :, None] - window + jnp.arange(window + block)[None, None]  # [B, n, w + b]
    keys = jnp.take_along_axis(order, jnp.clip(ranks, 0, slots - 1).reshape(rows, -1), axis=1)
    distance = np.arange(block)[:, None] - np.arange(-window, block)[None]  # [b, w + b]
    is_near = (distance >= 0) & (distance < window)
    mask = is_near[None, None] & (ranks >= 0)[:, :, None]
    if segments is not None:
        of_keys = jnp.take_along_axis(texts, keys, axis=1).reshape(rows, count, 1, -1)
        of_queries = jnp.take_along_axis(texts, columns, axis=1).reshape(rows, count, block, 1)
        mask = mask & (of_keys == of_queries)
    queries = columns.reshape(rows, count, block)
    return WindowBlocks(queries, keys.reshape(rows, count, -1), mask, places)


def attend_blocks(
    query: Float[Array, "B K M d"],
    keys: Float[Array, "B K d S"],
    values: Float[Array, "B K S d"],
    blocks: WindowBlocks,
    prefix: tuple[Float[Array, "P K d L"], Float[Array, "P K L d"]] | None = None,
) -> Float[Array, "B K M d"]:
    """Grouped-query attention by blocks, as `layers.attend` computes it in one piece."""
    rows, heads, _, depth = query.shape
    _, count, block, reach = blocks.mask.shape
    if prefix is not None:
        before = [jnp.repeat(x, rows // len(x), axis=0) for x in prefix]
        keys = jnp.concatenate([before[0], keys], axis=3)
        values = jnp.concatenate([before[1], values], axis=2)
    query = query * jnp.asarray(depth**-0.5, query.dtype)
    # [B, K, G * T, d] -> [B, K, G, n * b, d] -> [B, K, n, G * b, d]
    query = _take(query.reshape(rows, heads, -1, blocks.places.shape[1], depth), blocks.queries, 3)
    groups = query.shape[2]
    query = query.reshape(rows, heads, groups, count, block, depth).swapaxes(2, 3)
    query = query.reshape(rows, heads, count, groups * block, depth)
    # [B, K, d, S] -> [B, K, d, n * (w + b)] -> [B, K, n, d, w + b]
    keys = _take(keys, blocks.keys, 3).reshape(rows, heads, depth, count, reach).swapaxes(2, 3)
    values = _take(values, blocks.keys, 2).reshape(rows, heads, count, reach, depth)
    mask = jnp.tile(blocks.mask, (1, 1, groups, 1))[:, None]
    scores = jnp.where(mask, (query @ keys).astype(jnp.float32), MASKED)
    y = jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values
    # [B, K, n, G * b, d] -> [B, K, G, n * b, d] -> [B, K, G, T, d]
    y = y.reshape(rows, heads, count, groups, block, depth).swapaxes(2, 3)
    y = _take(y.reshape(rows, heads, groups, count * block, depth), blocks.places, 3)
    return y.reshape(rows, heads, -1, depth)


def _take(x: Array, places: Int[Array, "B ..."], axis: int) -> Array:
    """Each row's entries at its own places along an axis of the batch."""
    flat = places.reshape(len(places), -1)
    return jax.vmap(lambda row, at: jnp.take(row, at, axis=axis - 1, mode="clip"))(x, flat)
