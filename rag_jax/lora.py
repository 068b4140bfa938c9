"""Low-rank adapters as plain trees (Hu et al. 2021): `W + scale * A B`, for any parameter tree.

An adapter is a nested dict with the shape of the tree it belongs to, holding `{"a": [in, r],
"b": [r, out]}` where the tree has a targeted `[in, out]` kernel. This file imports JAX alone.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

Tree = PyTree[Float[Array, "..."]]


def init(key: Key[Array, ""], params: Tree, *, targets: str, rank: int) -> Tree:
    """A fresh adapter: `a` uniform in `+-1 / sqrt(in)`, `b` zero, so that it changes nothing yet.

    The bound is that of PEFT's Kaiming-uniform initialisation with slope sqrt(5).

    Args:
        params: nested dict of parameters.
        targets: regular expression, matched in full against a kernel's path (`a/b/kernel`).
        rank: the adapter's inner size.

    Raises:
        ValueError: no matrix matches `targets`.
    """
    count = 0

    def build(tree, path):
        nonlocal count
        adapter = {}
        for name, leaf in tree.items():
            if isinstance(leaf, Mapping):
                if below := build(leaf, (*path, name)):
                    adapter[name] = below
            elif leaf.ndim == 2 and re.fullmatch(targets, "/".join((*path, name))):
                rows, columns = leaf.shape
                draw = jax.random.fold_in(key, count)
                count += 1
                a = jax.random.uniform(draw, (rows, rank), leaf.dtype, -1.0, 1.0) * rows**-0.5
                adapter[name] = {"a": a, "b": jnp.zeros((rank, columns), leaf.dtype)}
        return adapter

    adapter = build(params, ())
    if not count:
        raise ValueError(f"no matrix of the parameters matches the targets {targets!r}")
    return adapter


def apply(params: Tree, adapter: Tree, *, scale: float) -> Tree:
    """The parameters with the adapter beside its kernels, unfused: `lora_a` and `scale * lora_b`.

    The layers of `rag_jax.models` add `(x @ lora_a) @ lora_b` where they find the two; the base
    kernels are shared, not copied.

    Args:
        scale: the published `alpha / rank`.

    Raises:
        ValueError: the adapter has a matrix that is no layer's kernel, such as an embedding.
    """

    def place(tree, patch):
        placed = dict(tree)
        for name, below in patch.items():
            if isinstance(tree[name], Mapping):
                placed[name] = place(tree[name], below)
            elif name != "kernel":
                raise ValueError(f"no layer would find an adapter beside {name!r}: use fold")
            else:
                placed["lora_a"], placed["lora_b"] = below["a"], scale * below["b"]
        return placed

    return place(params, adapter)


def fold(params: Tree, adapter: Tree, *, scale: float) -> Tree:
    """The parameters with `scale * a @ b` added to the targeted kernels; works in any library."""

    def add(tree, patch):
        added = dict(tree)
        for name, below in patch.items():
            if isinstance(tree[name], Mapping):
                added[name] = add(tree[name], below)
            else:
                added[name] = tree[name] + scale * below["a"] @ below["b"]
        return added

    return add(params, adapter)
