"""The part of a cache that sliding layers read, when a chunk no longer than a window follows it.

A window counts tokens, and a cache has slots: padding and other texts may stand between a window's
tokens, and each row's windows end elsewhere. So the slots that the windows of a chunk reach, in any
row, are found once a pass from the attention mask, and every sliding layer attends to the shortest
of a few slices that hold all of them. The longest slice is the whole cache.

The letters in shapes are those of `rag_jax.models.nn.layers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Slots of the shortest slice beyond those of the windows, as a part of a window: room for the
# padding that a prompt's batch adds.
_ROOM = 1 / 8
# A slice is copied before it is read: one that holds more of the slots than this saves nothing.
_LARGEST = 3 / 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowSlots:
    """The attention mask of a sliding layer, and the slots beyond which it is False.

    Attributes:
        mask: attention mask over all slots of the row.
        prefix_mask: over all slots of the prefix; None without a prefix.
        first: first slot of the row that a token attends to.
        prefix_first: the same of the prefix.
        choice: number of the shortest slice that holds all such slots, of the row and the prefix.
        sizes: of the slices, in slots, shortest first; the last holds all slots.
    """

    mask: Bool[Array, "B T S"]
    prefix_mask: Bool[Array, "B T L"] | None
    first: Int[Array, ""]
    prefix_first: Int[Array, ""]
    choice: Int[Array, ""]
    sizes: tuple[int, ...] = field(metadata={"static": True})


def find_slots(
    mask: Bool[Array, "B T S"],
    prefix_mask: Bool[Array, "B T L"] | None,
    window: int,
    slot: Int[Array, ""] | int,
) -> WindowSlots | None:
    """The slots that windows reach; None where no slice saves work.

    What padding attends to does not count: nothing reads it, and the windows of a row that has
    ended would stay behind.

    Args:
        mask: attention mask within the windows.
        slot: first slot of the chunk. A column of the chunk is padding if its own slot is masked.
    """
    width, slots = mask.shape[1:]
    length = 0 if prefix_mask is None else prefix_mask.shape[2]
    sizes = list_sizes(window, width, slots, length)
    if len(sizes) == 1:
        return None
    own = jax.lax.dynamic_slice_in_dim(mask, slot, width, axis=2)  # [B, T, T]
    is_token = jnp.diagonal(own, axis1=1, axis2=2)[:, :, None]
    first, reach = _span(mask & is_token)
    prefix_first = jnp.int32(0)
    if prefix_mask is not None:
        prefix_first, prefix_reach = _span(prefix_mask & is_token)
        reach = jnp.maximum(reach, prefix_reach)
    choice = (reach > jnp.asarray(sizes[:-1], jnp.int32)).sum()
    return WindowSlots(mask, prefix_mask, first, prefix_first, choice, sizes)


def list_sizes(window: int, width: int, slots: int, length: int) -> tuple[int, ...]:
    """Numbers of slots of the slices that a chunk of `width` tokens may take, shortest first.

    Args:
        slots: of the row, `S`.
        length: slots of the prefix, `L`.
    """
    sizes = []
    size = window + width - 1 + round(_ROOM * window)
    while min(size, slots) + min(size, length) <= _LARGEST * (slots + length):
        sizes.append(size)
        size *= 2
    return (*sizes, max(slots, length))


def attend_window(
    attend: Callable[..., Float[Array, "B K M d"]],
    query: Float[Array, "B K M d"],
    keys: Float[Array, "B K d S"],
    values: Float[Array, "B K S d"],
    window: WindowSlots,
    prefix: tuple[Float[Array, "P K d L"], Float[Array, "P K L d"]] | None,
) -> Float[Array, "B K M d"]:
    """Attention to the slice that the windows reach.

    Args:
        attend: `layers.attend`.
    """
    groups = query.shape[2] // window.mask.shape[1]

    def attend_slice(size: int, query, keys, values, prefix) -> Float[Array, "B K M d"]:
        keys, values, mask = _cut(keys, values, window.mask, window.first, size)
        prefix_mask = window.prefix_mask
        if prefix is not None:
            *prefix, prefix_mask = _cut(*prefix, prefix_mask, window.prefix_first, size)
            prefix_mask = jnp.tile(prefix_mask[:, None], (1, 1, groups, 1))
        # [B, T, s] -> [B, 1, (H / K) * T, s]
        mask = jnp.tile(mask[:, None], (1, 1, groups, 1))
        return attend(query, keys, values, mask, prefix=prefix, prefix_mask=prefix_mask)

    branches = [partial(attend_slice, size) for size in window.sizes]
    return jax.lax.switch(window.choice, branches, query, keys, values, prefix)


def _span(mask: Bool[Array, "B T S"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The first slot that any token attends to, and the number of slots from it to the last."""
    reached = mask.any(axis=(0, 1))
    first, behind = jnp.argmax(reached), jnp.argmax(reached[::-1])
    return first, jnp.where(reached.any(), len(reached) - behind - first, 0)


def _cut(keys, values, mask, first, size: int) -> tuple[Array, Array, Array]:
    """`size` slots from the first on, or the last `size` ones, which then hold it too."""
    if size >= mask.shape[2]:
        return keys, values, mask
    axes = (keys, 3), (values, 2), (mask, 2)
    return tuple(jax.lax.dynamic_slice_in_dim(x, first, size, axis) for x, axis in axes)
