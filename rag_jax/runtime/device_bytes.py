"""Bytes of arrays on the devices of a mesh."""

import math
from typing import Any

import jax
from jaxtyping import PyTree


def count_replicated(tree: PyTree) -> int:
    """Bytes of the arrays, or descriptions of arrays, that are replicated on every device."""
    replicated = (leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in replicated)


def count_bytes_per_device(tree: PyTree) -> int:
    """Bytes of the arrays, or descriptions of arrays, on one device: all without a sharding."""

    def count(x: Any) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(count, jax.tree.leaves(tree)))
