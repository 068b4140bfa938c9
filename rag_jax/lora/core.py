"""LoRA for any parameter tree: `W + scale * A B` (Hu et al. 2021).

An adapter is a nested dict along the paths of the parameter tree. In place of each targeted
`[in, *out]` kernel, the dict holds the factors `{"a": [in, r], "b": [r, *out]}`. A bank is a tree
of `N` adapters stacked along a leading axis, ready for `jax.vmap`. Merging `k` adapters
concatenates their ranks, `[..., k, in, r]` to `[..., in, k * r]`, and gives an adapter again.

This file needs only JAX, so that other projects can copy it. With jaxtyping, shapes are checked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

try:
    from jaxtyping import Array, Float, Int, Key, PyTree
except ModuleNotFoundError:  # the shapes in signatures are then for the reader alone

    class Float:  # any array
        def __class_getitem__(cls, shape: Any) -> Any:
            return Any

    Array, Int, Key, PyTree = jax.Array, Float, Float, Float

Tree = PyTree[Float[Array, "..."]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptedKernel:
    """A kernel with `lora_a` and `lora_b` next to it, for layers that read all three.

    A layer that knows no adapters would leave the adapter out: any use as an array is an error.

    Attributes:
        array: the kernel.
        path: names of the kernel's path, joined by `/`.
    """

    array: Any
    path: str = field(metadata={"static": True})

    def __jax_array__(self, *args: Any, **kwargs: Any):
        """Refuses the use by JAX and NumPy."""
        raise ValueError(self._explain())

    __array__ = __jax_array__

    def __getattr__(self, name: str):
        """Refuses the attributes of an array."""
        raise AttributeError(name if name.startswith("_") else self._explain())

    def _explain(self) -> str:
        return (
            f"{self.path}: this layer is not one of rag_jax.models and would leave the adapter "
            "out: use lora.fold in place of lora.apply, or rag_jax.lora.flax_layers for Flax's "
            "dense layers"
        )


def compute_scale(alpha: float, rank: int, *, rank_stabilized: bool = False) -> float:
    """Scale of an adapter: `alpha / rank`, or rsLoRA's `alpha / sqrt(rank)`, Kalajdzievski 2023.

    Raises:
        ValueError: `rank` is below 1.
    """
    _check_rank(rank)
    return alpha / (rank**0.5 if rank_stabilized else rank)


def init(key: Key[Array, ""], params: PyTree, *, targets: str, rank: int) -> Tree:
    """A new adapter: `a` uniform in `+-1 / sqrt(in)`, `b` zero, so that `A B` is zero.

    The bound is that of PEFT's Kaiming-uniform initialisation with slope sqrt(5).

    Args:
        key: random key. Each kernel's `a` is drawn with a different key derived from this key.
        params: nested dicts of parameters, or any other JAX tree. The first axis of a kernel is
            the input: for a fused projection `[D, H, d]`, `a` is `[D, r]` and `b` is `[r, H, d]`.
            If the first axis numbers stacked layers, map `init` over the axis with `jax.vmap`.
        targets: regular expression that must match a kernel's whole path (`a/b/kernel`).

    Raises:
        ValueError: no matrix matches `targets`, or `rank` is below 1.
    """
    _check_rank(rank)
    adapter, count = {}, 0
    for path, leaf in _list_leaves(params):
        # Some libraries keep functions in their trees, which have no `ndim`.
        if getattr(leaf, "ndim", 0) < 2 or not re.fullmatch(targets, _join(path)):
            continue
        draw, count = jax.random.fold_in(key, count), count + 1
        inputs, *outputs = leaf.shape
        dtype = leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.float32  # of int8
        a = jax.random.uniform(draw, (inputs, rank), dtype, -1.0, 1.0) * inputs**-0.5
        node = adapter
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = {"a": a, "b": jnp.zeros((rank, *outputs), dtype)}
    if not count:
        raise ValueError(f"no matrix of the parameters matches the targets {targets!r}")
    return adapter


def init_bank(key: Key[Array, ""], params: PyTree, *, targets: str, rank: int, size: int) -> Tree:
    """A bank of `size` equal new adapters of `init`, arrays `[size, ...]`.

    In Parametric RAG, every document starts from the same `a` (Su et al. 2025, section 3.2.2).

    Raises:
        ValueError: no matrix matches `targets`.
    """
    adapter = init(key, params, targets=targets, rank=rank)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), adapter)


def stack(adapters: Sequence[Tree]) -> Tree:
    """The bank of `N` adapters, arrays `[N, ...]`, in order; `{}` for an empty list.

    Raises:
        ValueError: two adapters differ in targets, rank or sizes.
    """
    if not adapters:
        return {}
    for i, adapter in enumerate(adapters):
        _check_adapter(adapter, f"adapters: entry {i}")
    first, *others = (dict(list_kernels(adapter)) for adapter in adapters)
    for i, other in enumerate(others, 1):
        for path in sorted(first.keys() ^ other.keys(), key=_join):
            lacking = 0 if path in other else i
            raise ValueError(f"{_join(path)}: adapter {lacking} has no such kernel, another has")
        for path, factors in first.items():
            one, two = ({n: own[n].shape for n in "ab"} for own in (factors, other[path]))
            if one != two:
                raise ValueError(
                    f"{_join(path)}: adapter 0 has {one}, adapter {i} has {two}: stacked adapters "
                    "must have the same rank and base model"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def select(bank: Tree, indices: Int[ArrayLike, "..."]) -> Tree:
    """Adapters of a bank by index, arrays `[N, ...]` to `[*indices.shape, ...]`, also under jit.

    Args:
        indices: of any shape, such as `[B, k]` for `k` documents for each of `B` questions. One
            out of range, such as -1 for a missing document, gives an adapter of zeros.

    Raises:
        TypeError: the indices are no integers.
    """
    indices = jnp.asarray(indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices: {indices.dtype}{[*indices.shape]}, expected integers")
    if indices.dtype.itemsize < 4:  # too narrow for the number of adapters
        indices = indices.astype(jnp.int32)

    def take_or_zero(leaf):
        leaf = leaf if len(leaf) else jnp.zeros((1, *leaf.shape[1:]), leaf.dtype)  # JAX takes no 0
        # JAX counts negative indices from the end, so they become an index beyond the end.
        checked = jnp.where(indices < 0, len(leaf), indices)
        return jnp.take(leaf, checked, axis=0, mode="fill", fill_value=0)

    return jax.tree.map(take_or_zero, bank)


def merge(
    adapters: Tree | Sequence[Tree],
    *,
    scale: float,
    weights: Float[ArrayLike, "... k"] | None = None,
) -> Tree:
    """One adapter equal to the weighted sum of `k` adapters, `scale * sum_j w_j A_j B_j`.

    Parametric RAG's merging (Su et al. 2025, eq. 6, with all weights 1). The ranks are
    concatenated: `a` is `[A_1 ... A_k]` and `b` is `scale * [w_1 B_1; ...; w_k B_k]`. The result
    includes the scale: pass `scale=1.0` to `apply` or `fold`. The same adapter twice counts twice.
    Without adapters, the result changes nothing: rank 0 from a bank, `{}` from a list.

    Args:
        adapters: a list of adapters, `[in, r]` or `[L, in, r]` of layers that are scanned; or
            arrays `[..., k, in, r]`, the result of `select` with indices `[..., k]`. The axes
            before `k` are kept: `[B, k]` gives `B` adapters.
        scale: scale of each adapter, see `compute_scale`.
        weights: weights of the adapters, by default 1.

    Raises:
        ValueError: the adapters differ in kind, are a single adapter, or do not have `k` weights.
    """
    bank = stack(adapters) if isinstance(adapters, list | tuple) else adapters
    _check_adapter(bank, "adapters")

    def concatenate_ranks(node, path):
        if not _is_kernel(node):
            return {name: concatenate_ranks(node[name], (*path, name)) for name in node}
        a, b = node["a"], node["b"]
        if isinstance(adapters, list | tuple):  # [k, ...] -> [..., k]
            a, b = (jnp.moveaxis(x, 0, node["a"].ndim - 3) for x in (a, b))
        batch = a.shape[:-2]  # [..., k]
        if not batch or b.shape[: len(batch)] != batch:
            raise ValueError(f"{_join(path)}: a single adapter cannot be merged; pass several")
        w = jnp.asarray(1.0 if weights is None else weights)
        if w.ndim > len(batch) or w.shape != batch[len(batch) - w.ndim :]:
            raise ValueError(f"weights of shape {w.shape} for adapters {batch}")
        w = jnp.broadcast_to(scale * w, batch).astype(b.dtype)
        b = b * w.reshape(*batch, *[1] * (b.ndim - len(batch)))
        *lead, k = batch
        rank = k * a.shape[-1]
        return {
            # [..., k, in, r] -> [..., in, k * r]
            "a": jnp.swapaxes(a, -3, -2).reshape(*lead, a.shape[-2], rank),
            # [..., k, r, *out] -> [..., k * r, *out]
            "b": b.reshape(*lead, rank, *b.shape[len(batch) + 1 :]),
        }

    return concatenate_ranks(bank, ())


def apply(params: PyTree, adapter: Tree, *, scale: float) -> PyTree:
    """The parameters with an unfused adapter: `lora_a` and `scale * lora_b` next to each kernel.

    The linear layers of `rag_jax.models` add `(x @ lora_a) @ lora_b` to their outputs, and so do
    Flax's dense layers with `rag_jax.lora.flax_layers`. All other layers fail, by `AdaptedKernel`,
    and name themselves: `fold` is for any layer. The base kernels are shared, not copied. `P`
    adapters, arrays `[P, ...]`, are applied to `P` equal parts of a batch: the first adapter to the
    first `B / P` rows, and so on.

    Args:
        adapter: an adapter or a bank.
        scale: the scale from `compute_scale`; 1 for the result of `merge`.

    Raises:
        ValueError: the adapter does not fit, or targets no linear layer (such as an embedding).
    """
    check_fit(params, adapter, lead=1)
    for path, _ in list_kernels(adapter):
        if path[-1] != "kernel":
            raise ValueError(f"no layer reads an adapter next to {path[-1]!r}: use fold")

    def insert(tree, factors, path):
        tree = dict(tree)
        for name, node in factors.items():
            here = (*path, name)
            if isinstance(tree[name], Mapping):
                tree[name] = insert(tree[name], node, here)
            elif not _is_kernel(node):
                raise ValueError(f"{_join(here)}: a layer of ours is a dict, not this: use fold")
            else:
                tree[name] = AdaptedKernel(tree[name], _join(here))
                tree["lora_a"], tree["lora_b"] = node["a"], scale * node["b"]
        return tree

    return insert(params, adapter, ())


def fold(params: PyTree, adapter: Tree, *, scale: float) -> PyTree:
    """The parameters with `scale * a @ b` added to the targeted kernels, for models of any library.

    Args:
        params: nested dicts of parameters, or any other JAX tree; not changed.
        adapter: a single adapter; for a bank, map `fold` over the bank with `jax.vmap`.

    Raises:
        ValueError: the adapter does not fit the parameters, or a kernel is of integers.
    """
    kernels = check_fit(params, adapter, lead=0)
    for path, _ in list_kernels(adapter):
        if not jnp.issubdtype(kernels[path].dtype, jnp.inexact):  # which rounds an adapter away
            raise ValueError(f"{_join(path)}: a kernel in {kernels[path].dtype}: use apply")

    def add(tree, factors):
        if isinstance(tree, Mapping):
            return {**tree, **{name: add(tree[name], node) for name, node in factors.items()}}

        def add_leaf(keys, leaf):
            node = reduce(lambda found, key: found.get(_name(key), {}), keys, factors)
            update = scale * jnp.tensordot(node["a"], node["b"], 1) if node else None
            return leaf if update is None else leaf + update.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(add_leaf, tree)

    return add(params, adapter)


def list_kernels(adapter: PyTree, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yields path, after `path`, and factors of every kernel of an adapter or bank, or shapes."""
    for name, node in adapter.items():
        if _is_kernel(node):
            yield (*path, name), node
        else:
            yield from list_kernels(node, (*path, name))


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _join(path: Sequence[Any]) -> str:
    return "/".join(map(str, path))


def _list_leaves(tree: PyTree, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yields the path and value of every leaf; of dicts in the order of JAX, by their names."""
    if isinstance(tree, Mapping):
        for name, node in sorted(tree.items(), key=lambda item: str(item[0])):
            yield from _list_leaves(node, (*path, name))
    else:
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield (*path, *map(_name, keys)), leaf


def _is_kernel(node: Mapping) -> bool:
    return node.keys() == {"a", "b"} and not isinstance(node["a"], Mapping)


def _check_rank(rank: int) -> None:
    if not hasattr(rank, "__index__") or rank < 1:  # NumPy's integers have it too
        raise ValueError(f"rank={rank!r}: must be an integer, at least 1")


def _check_adapter(adapter: Any, name: str) -> None:
    """Raises a TypeError unless an adapter is nested dicts that end in factors `a` and `b`."""
    if not isinstance(adapter, Mapping):
        raise TypeError(f"{name}: a {type(adapter).__name__}, expected the dicts of lora.init")
    if not _is_kernel(adapter):
        for key, node in adapter.items():
            _check_adapter(node, f"{name}: {key}")


def check_fit(params: PyTree, adapter: Tree, *, lead: int) -> dict[tuple, Any]:
    """The parameters by path; a ValueError if a factor does not fit, after up to `lead` axes."""
    _check_adapter(adapter, "adapter")
    kernels = dict(_list_leaves(params))
    for path, factors in list_kernels(adapter):
        if path not in kernels:
            raise ValueError(f"{_join(path)}: the parameters have no such kernel")
        a, b, kernel = factors["a"].shape, factors["b"].shape, kernels[path].shape
        axes = len(a) - 2  # number of bank axes
        fits = 0 <= axes <= lead and a[:axes] == b[:axes]
        if not fits or a[axes] != kernel[0] or b[axes:] != (a[-1], *kernel[1:]):
            raise ValueError(
                f"{_join(path)}: an adapter of {a} and {b} does not fit a kernel of {kernel}"
            )
    return kernels
