"""Low-rank adapters as plain trees (Hu et al. 2021): `W + scale * A B`, for any parameter tree.

An adapter is a nested dict along the paths of the tree it belongs to, with `{"a": [in, r],
"b": [r, *out]}` where that tree has a targeted `[in, *out]` kernel. A bank is N adapters as one
such tree, whose arrays have a leading axis: `jax.vmap` over it is N adapters at once. What is
merged, `[..., k, in, r]` to `[..., in, k * r]`, is an adapter again.

This file imports JAX alone and may be copied alone into another project.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

Tree = PyTree[Float[Array, "..."]]


def compute_scale(alpha: float, rank: int, *, rank_stabilized: bool = False) -> float:
    """The usual `alpha / rank`, or rsLoRA's `alpha / sqrt(rank)` (Kalajdzievski 2023)."""
    return alpha / (rank**0.5 if rank_stabilized else rank)


def init(key: Key[Array, ""], params: PyTree, *, targets: str, rank: int) -> Tree:
    """A fresh adapter: `a` uniform in `+-1 / sqrt(in)`, `b` zero, so that it changes nothing yet.

    The bound is that of PEFT's Kaiming-uniform initialisation with slope sqrt(5).

    Args:
        params: nested dicts of parameters, or whatever else JAX knows as a tree. Of a kernel with
            more than two axes, such as a fused `[D, H, d]` projection, the first is the input:
            `a` is `[D, r]` and `b` is `[r, H, d]`. Where the first axis numbers stacked layers,
            map this over it with `jax.vmap`.
        targets: regular expression, matched in full against a kernel's path (`a/b/kernel`).
        rank: the adapter's inner size.

    Raises:
        ValueError: no matrix matches `targets`.
    """
    adapter: dict = {}
    count = 0
    for path, leaf in _list_leaves(params):
        # A leaf may be anything: some libraries keep functions in their trees.
        if getattr(leaf, "ndim", 0) < 2 or not re.fullmatch(targets, _join(path)):
            continue
        draw = jax.random.fold_in(key, count)
        count += 1
        inputs, *outputs = leaf.shape
        a = jax.random.uniform(draw, (inputs, rank), leaf.dtype, -1.0, 1.0) * inputs**-0.5
        node = adapter
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = {"a": a, "b": jnp.zeros((rank, *outputs), leaf.dtype)}
    if not count:
        raise ValueError(f"no matrix of the parameters matches the targets {targets!r}")
    return adapter


def init_bank(key: Key[Array, ""], params: PyTree, *, targets: str, rank: int, size: int) -> Tree:
    """A bank of `size` fresh adapters, arrays `[size, ...]`, all from one starting point.

    In Parametric RAG every document starts from the same `a` (Su et al. 2025, section 3.2.2).

    Args:
        key: as for `init`, and so are `params`, `targets` and `rank`.

    Raises:
        ValueError: no matrix matches `targets`.
    """
    adapter = init(key, params, targets=targets, rank=rank)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), adapter)


def stack(adapters: Sequence[Tree]) -> Tree:
    """The bank of some adapters, in their order; of none, the adapter `{}`, without any kernel.

    Raises:
        ValueError: two of them differ in targets, rank or sizes.
    """
    if not adapters:
        return {}
    first, *others = (dict(list_kernels(adapter)) for adapter in adapters)
    for i, other in enumerate(others, 1):
        for path in sorted(first.keys() ^ other.keys(), key=_join):
            lacking = 0 if path in other else i
            raise ValueError(f"{_join(path)}: adapter {lacking} has no such kernel, another has")
        for path, kernel in first.items():
            shapes = [{side: patch[side].shape for side in "ab"} for patch in (kernel, other[path])]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{_join(path)}: adapter 0 has {shapes[0]}, adapter {i} has {shapes[1]}: "
                    "only adapters of one rank and one base model go together"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def select(bank: Tree, indices: Int[ArrayLike, "..."]) -> Tree:
    """Rows of a bank, arrays `[N, ...]` to `[*indices.shape, ...]`; for use inside `jax.jit` too.

    Args:
        indices: which, of any shape, such as `[B, k]` for `k` documents of each of `B` questions.
            An index that is none, such as the -1 of a document that was not found, gives an
            adapter of zeros, which changes nothing.
    """
    indices = jnp.asarray(indices)

    def pick(leaf):
        known = jnp.where(indices < 0, len(leaf), indices)  # JAX would count from the end
        return jnp.take(leaf, known, axis=0, mode="fill", fill_value=0)

    return jax.tree.map(pick, bank)


def merge(
    adapters: Tree | Sequence[Tree],
    *,
    scale: float,
    weights: Float[ArrayLike, "... k"] | None = None,
) -> Tree:
    """One adapter that does what `k` do together, `scale * sum_j w_j A_j B_j`, with scale 1.

    Parametric RAG's merging (Su et al. 2025, eq. 6, where all weights are 1): the ranks stand
    beside each other, `a` is `[A_1 ... A_k]` and `b` is `scale * [w_1 B_1; ...; w_k B_k]`. Use it
    with `apply` or `fold` and `scale=1.0`. The same adapter twice counts twice. None at all gives
    an adapter that changes nothing: of rank 0 from rows of a bank, `{}` from an empty list.

    Args:
        adapters: a list; or rows of a bank, arrays `[..., k, in, r]`, as `select` gives them with
            indices `[..., k]`. Every axis before the last index's is kept: `[B, k]` gives an
            adapter for each of `B` rows.
        scale: of each adapter, as from `compute_scale`.
        weights: `[..., k]`, all 1 by default; 0 leaves an adapter out.

    Raises:
        ValueError: adapters of a list differ in targets, rank or sizes, or weights in number.
    """
    bank = stack(adapters) if isinstance(adapters, list | tuple) else adapters

    def join(node, path):
        if not _is_kernel(node):
            return {name: join(below, (*path, name)) for name, below in node.items()}
        a, b = node["a"], node["b"]
        rows = a.shape[:-2]  # [..., k]
        if not rows or b.shape[: len(rows)] != rows:
            raise ValueError(f"{_join(path)}: a list of adapters or rows of a bank are merged")
        factors = jnp.asarray(1.0 if weights is None else weights)
        if factors.ndim > len(rows) or factors.shape != rows[len(rows) - factors.ndim :]:
            raise ValueError(f"weights of shape {factors.shape} for adapters {rows}")
        factors = jnp.broadcast_to(scale * factors, rows).astype(b.dtype)
        b = b * factors.reshape(*rows, *[1] * (b.ndim - len(rows)))
        *lead, k = rows
        rank = k * a.shape[-1]
        return {
            "a": jnp.swapaxes(a, -3, -2).reshape(*lead, a.shape[-2], rank),
            "b": b.reshape(*lead, rank, *b.shape[len(rows) + 1 :]),
        }

    return join(bank, ())


def apply(params: PyTree, adapter: Tree, *, scale: float) -> PyTree:
    """The parameters with the adapter beside its kernels, unfused: `lora_a` and `scale * lora_b`.

    The layers of `rag_jax.models` add `(x @ lora_a) @ lora_b` where they find the two; the base
    kernels are shared, not copied. An adapter `[P, ...]`, such as the merged one of each of `P`
    rows, is applied to `P` equal parts of a batch: the first to the first `B / P` rows, and so on.

    Args:
        scale: the published `alpha / rank`, see `compute_scale`; 1 for what `merge` gave.

    Raises:
        ValueError: the adapter has a matrix that is no layer's kernel, such as an embedding, or
            does not fit the parameters.
    """
    _check_fit(params, adapter, lead=1)
    for path, _ in list_kernels(adapter):
        if path[-1] != "kernel":
            raise ValueError(f"no layer would find an adapter beside {path[-1]!r}: use fold")

    def place(tree, patch):
        placed = dict(tree)
        for name, below in patch.items():
            if isinstance(tree[name], Mapping):
                placed[name] = place(tree[name], below)
            else:
                placed["lora_a"], placed["lora_b"] = below["a"], scale * below["b"]
        return placed

    return place(params, adapter)


def fold(params: PyTree, adapter: Tree, *, scale: float) -> PyTree:
    """The parameters with `scale * a @ b` added to the targeted kernels; works in any library.

    Args:
        adapter: a single one; for a bank's, map this over it with `jax.vmap`.
        scale: as for `apply`.

    Raises:
        ValueError: the adapter does not fit the parameters.
    """
    _check_fit(params, adapter, lead=0)

    def add(tree, patch):
        if isinstance(tree, Mapping):
            return {**tree, **{name: add(tree[name], below) for name, below in patch.items()}}

        def add_leaf(keys, leaf):
            found = patch
            for key in keys:
                found = found.get(_name(key), {})
            return leaf + scale * jnp.tensordot(found["a"], found["b"], 1) if found else leaf

        return jax.tree_util.tree_map_with_path(add_leaf, tree)

    return add(params, adapter)


def list_kernels(adapter: Tree, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every `{"a": ..., "b": ...}` of an adapter, or of a bank, after its kernel's path."""
    for name, below in adapter.items():
        if _is_kernel(below):
            yield (*path, name), below
        else:
            yield from list_kernels(below, (*path, name))


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _join(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


def _list_leaves(tree: PyTree, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every leaf after its path; dicts in their own order, of which JAX would make another."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            yield from _list_leaves(below, (*path, name))
    else:
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield (*path, *map(_name, keys)), leaf


def _is_kernel(node: Mapping) -> bool:
    return node.keys() == {"a", "b"} and not isinstance(node["a"], Mapping)


def _check_fit(params: PyTree, adapter: Tree, *, lead: int) -> None:
    """Raises unless every `a` and `b` fits its kernel, behind up to `lead` axes of their own."""
    kernels = dict(_list_leaves(params))
    for path, patch in list_kernels(adapter):
        if path not in kernels:
            raise ValueError(f"{_join(path)}: the parameters have no such kernel")
        a, b, kernel = patch["a"].shape, patch["b"].shape, kernels[path].shape
        own = len(a) - 2
        fits = 0 <= own <= lead and a[:own] == b[:own]
        if not fits or a[own] != kernel[0] or b[own:] != (a[-1], *kernel[1:]):
            raise ValueError(
                f"{_join(path)}: an adapter of {a} and {b} does not fit a kernel of {kernel}"
            )
