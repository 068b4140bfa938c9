"""Unfused adapters in Flax models of other projects: Linen's and NNX's dense layers.

`intercept_linen` runs a Linen model with parameters from `lora.apply`; `adapt_nnx` gives an NNX
model whose dense layers hold an adapter. Both compute `x @ kernel + (x @ a) @ b` and take one
adapter: for several, such as one for each document, map over a bank with `jax.vmap`.

This file imports only JAX, Flax, jaxtyping and `rag_jax.lora.core`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from rag_jax.lora import core


def intercept_linen(
    call: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Lets `nn.Dense` and `nn.DenseGeneral` read adapters; for `nn.intercept_methods`.

        with nn.intercept_methods(intercept_linen):
            y = model.apply({"params": lora.apply(params, adapter, scale=scale)}, x)

    Raises:
        ValueError: a layer has several adapters, numbers its batches (`batch_dims`), or computes
            something else than Flax's own.
    """
    layer = context.module
    params = layer.variables.get("params", {})
    kernel = params.get("kernel")
    is_dense = isinstance(layer, nn.Dense | nn.DenseGeneral) and context.method_name == "__call__"
    if not is_dense or not isinstance(kernel, core.AdaptedKernel):
        return call(*args, **kwargs)
    if getattr(layer, "batch_dims", ()):
        raise ValueError(f"{kernel.path}: a layer with batch_dims reads no adapter: use lora.fold")
    _check_own(layer, nn.Dense, kernel.path)
    plain = {name: params[name] for name in params if name not in ("lora_a", "lora_b")}
    plain["kernel"] = kernel.array
    y = layer.clone(parent=None).apply({"params": plain}, *args, **kwargs)
    x = args[0] if args else kwargs["inputs"]
    return y + _multiply(x, params["lora_a"], params["lora_b"], layer, kernel.path).astype(y.dtype)


class AdaptedLinear(nnx.Module):
    """An NNX dense layer with an adapter: `layer(x) + (x @ a) @ b`."""

    def __init__(self, layer: nnx.Module, a: Array, b: Array, *, path: str):
        """Wraps a layer; `b` includes the scale, and `path` names the layer in errors."""
        self.layer, self.path = layer, path
        self.a, self.b = nnx.LoRAParam(a), nnx.LoRAParam(b)

    def __call__(self, inputs: Array, **options: Any) -> Array:
        """Applies the layer and its adapter; `options` are the layer's."""
        y = self.layer(inputs, **options)
        return y + _multiply(inputs, self.a[...], self.b[...], self.layer, self.path).astype(
            y.dtype
        )


def adapt_nnx(model: nnx.Module, adapter: core.Tree, *, scale: float) -> nnx.Module:
    """A copy of an NNX model whose targeted dense layers hold an adapter; weights are shared.

    The adapter follows the paths of `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, which
    `lora.init` takes. Within `jax.grad` or `jax.vmap` over the adapter, call `adapt_nnx` inside the
    differentiated or mapped function. The model itself stays as it is.

    Args:
        scale: the scale from `compute_scale`; 1 for the result of `merge`.

    Raises:
        ValueError: the adapter targets another layer than `nnx.Linear` and `nnx.LinearGeneral`, one
            with `batch_axis`, or one that the model has in two places; or it does not fit the
            layer's kernel.
    """
    adapted = nnx.clone(model)
    shared = [place for places in nnx.find_duplicates(adapted) for place in places]
    core.check_fit(nnx.to_pure_dict(nnx.state(adapted, nnx.Param)), adapter, lead=0)
    for path, factors in core.list_kernels(adapter):
        name, where = "/".join(map(str, path)), path[:-1]
        layer = reduce(_get, where, adapted)
        is_dense = isinstance(layer, nnx.Linear | nnx.LinearGeneral) and path[-1] == "kernel"
        if not is_dense or getattr(layer, "batch_axis", None):
            kind = type(layer).__name__
            raise ValueError(f"{name}: a layer {kind} reads no adapter: use lora.fold")
        _check_own(layer, nnx.Linear, name)
        if any(path[: len(place)] == place for place in shared):
            raise ValueError(f"{name}: is in two places of the model: use lora.fold")
        layer = AdaptedLinear(layer, factors["a"], scale * factors["b"], path=name)
        if not where:
            return layer
        _set(reduce(_get, where[:-1], adapted), where[-1], layer)
    return adapted


def _check_own(layer: Any, kind: type, path: str) -> None:
    """Raises a ValueError if a layer's own class says what it computes.

    A layer that `nn.remat` or `nn.jit` wrap has the method of Flax's.
    """
    if type(layer).__call__.__module__ != kind.__call__.__module__:
        name = type(layer).__name__
        raise ValueError(f"{path}: {name} computes more than {kind.__name__}: use lora.fold")


def _multiply(
    x: Float[Array, "..."], a: Float[Array, "D r"], b: Float[Array, "r ..."], layer: Any, path: str
) -> Float[Array, "..."]:
    """The low-rank product with the inputs of a dense layer, in the dtype of the computation.

    If the layer contracts several axes of its input, `a` contracts the first one and `b` the rest.
    """
    if a.ndim != 2:
        raise ValueError(f"{path}: {len(a)} adapters for one layer: map over the bank with vmap")
    x, a, b = promote_dtype(x, a, b, dtype=layer.dtype)
    axis = getattr(layer, "axis", -1)
    axes = sorted(i % x.ndim for i in (axis if isinstance(axis, Sequence) else (axis,)))
    first, precision = axes[0], {"precision": layer.precision}
    low = jnp.tensordot(
        x, a, (first, 0), **precision
    )  # without the axis `first`, with r at the end
    rest = [i - (i > first) for i in axes[1:]]
    return jnp.tensordot(low, b, ([low.ndim - 1, *rest], [*range(len(axes))]), **precision)


def _get(node: Any, name: Any) -> Any:
    return node[name] if isinstance(node, Mapping | Sequence) else getattr(node, str(name))


def _set(node: Any, name: Any, layer: nnx.Module) -> None:
    if isinstance(node, Mapping | Sequence):
        node[name] = layer
    else:
        setattr(node, str(name), layer)
