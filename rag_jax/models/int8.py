"""Weights in int8: a language model's frozen layers in half the memory of bfloat16.

Each column of a kernel has a scale, so that the column's largest weight is 127 steps. `Linear`
multiplies by the steps and scales the product, and adapters are added to that. A tree of such
parameters is nested dicts like any other, with `kernel_scale` beside each `kernel`.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, PyTree

_STEPS = 127  # the steps are symmetric: -128 is not used


def quantize_layers(params: PyTree) -> PyTree:
    """A decoder's or encoder-decoder's parameters with the kernels of its layers in int8.

    The embedding, the norms and the output layer keep their type.

    Args:
        params: nested dicts; not changed. An array may be a description in `jax.eval_shape`.
    """
    is_layer = re.compile(r"(\w+_)?layers_\d+").fullmatch
    layers = {name: _quantize_tree(tree) for name, tree in params.items() if is_layer(name)}
    return {**params, **layers}


def is_quantized(params: PyTree) -> bool:
    """Whether any kernel of a tree of parameters is in int8."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def describe_floats(params: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types of parameters as if none were in int8, for `lora.init`."""

    def describe(leaf: Array) -> jax.ShapeDtypeStruct:
        dtype = jnp.float32 if leaf.dtype == jnp.int8 else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree.map(describe, params)


def _quantize_tree(tree: Mapping) -> dict:
    quantized = {
        name: _quantize_tree(node) if isinstance(node, Mapping) else node
        for name, node in tree.items()
    }
    if "kernel" in tree:
        quantized["kernel"], quantized["kernel_scale"] = quantize(tree["kernel"])
    return quantized


@jax.jit
def quantize(kernel: Float[Array, "D F"]) -> tuple[Int8[Array, "D F"], Float[Array, "F"]]:
    """The steps of a kernel's weights, and the size of a step of each column in its own type."""
    wide = kernel.astype(jnp.float32)
    scale = (jnp.abs(wide).max(axis=0) / _STEPS).astype(kernel.dtype)
    scale = jnp.where(scale > 0, scale, 1)  # a column of zeros
    steps = jnp.round(wide / scale.astype(jnp.float32)[None])
    # A scale that was rounded down would make the largest weight more steps than there are.
    return jnp.clip(steps, -_STEPS, _STEPS).astype(jnp.int8), scale
