"""The layers the models are made of. Activations travel as one flat `[N, D]` axis of tokens.

Why flat: a weight gradient of `[B, T, D]` activations contracts two axes, which runs at half speed
on CPU, while `[B * T, D]` is one large matrix product. The batch axis stays the major one, so
sharding over it is unaffected.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

MASKED = -1e9  # finite: a row of `-inf` would make softmax return NaN


class Linear(nn.Module):
    """`x @ kernel + bias`, plus `(x @ lora_a) @ lora_b` where the tree carries an adapter.

    `rag_jax.lora.apply` puts `lora_a` and `lora_b` beside a kernel, those of one adapter or of `P`,
    each for its part of the batch; nothing else needs to know.
    """

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        y = x @ kernel
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))[None]
        if self.has_variable("params", "lora_a"):
            lora_a = self.get_variable("params", "lora_a")
            lora_b = self.get_variable("params", "lora_b")
            y = y + adapt(x, lora_a, lora_b)
        return y


def adapt(
    x: Float[Array, "N D"],
    a: Float[Array, "D r"] | Float[Array, "P D r"],
    b: Float[Array, "r F"] | Float[Array, "P r F"],
) -> Float[Array, "N F"]:
    """`(x @ a) @ b`; of `P` adapters, the first for the first `N / P` tokens, and so on."""
    if a.ndim == 2:
        return (x @ a) @ b
    parts = x.reshape(a.shape[0], -1, x.shape[-1])
    return ((parts @ a) @ b).reshape(x.shape[0], -1)


def check_adapters(params: Mapping, rows: int) -> None:
    """Raises unless the rows of a batch divide evenly among the adapters of every layer.

    Tokens divide more easily than rows do, so without this some rows would get two adapters.

    Raises:
        ValueError: they don't.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "lora_a" and leaf.ndim == 3 and rows % len(leaf):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{where}: {len(leaf)} adapters for a batch of {rows} rows")


class RMSNorm(nn.Module):
    """`x / rms(x) * scale`, the mean square taken in float32 (Zhang and Sennrich 2019)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * inverse).astype(x.dtype) * scale[None]


class LayerNorm(nn.Module):
    """`(x - mean) / std * scale + bias`, the moments taken in float32 (Ba et al. 2016)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * inverse).astype(x.dtype) * scale[None] + bias[None]


class GatedFFN(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, SwiGLU)."""

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        gate = Linear(self.size, name="gate")(x)
        up = Linear(self.size, name="up")(x)
        return Linear(x.shape[-1], name="down")(nn.silu(gate) * up)


def attend(
    query: Float[Array, "B K M d"],
    keys: Float[Array, "B K d S"],
    values: Float[Array, "B K S d"],
    mask: Bool[Array, "B 1 M S"],
    *,
    prefix: tuple[Float[Array, "P K d L"], Float[Array, "P K L d"]] | None = None,
    prefix_mask: Bool[Array, "P L"] | None = None,
) -> Float[Array, "B K M d"]:
    """Grouped-query attention over a row's own keys and, optionally, a shared prefix before them.

    `K` key heads; `M = groups * T` holds the query heads of one key head under each other, so
    that both products are plain batched matrix products. Keys lie with their slots last: at one
    query a row, XLA on CPU is eight times faster that way than with slots before heads.

    Args:
        query: already rotated; scaled here by `1 / sqrt(d)`.
        keys: already rotated, `[B, K, d, S]`.
        values: `[B, K, S, d]`.
        mask: True where a query may look.
        prefix: keys and values stored once and read by `B / P` consecutive rows each.
        prefix_mask: True on the prefix's real tokens.
    """
    rows, heads, width, depth = query.shape
    query = query * jnp.asarray(depth**-0.5, query.dtype)
    scores = jnp.where(mask, (query @ keys).astype(jnp.float32), MASKED)
    if prefix is None:
        return jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values
    prefix_keys, prefix_values = prefix
    shared = prefix_keys.shape[0]

    def fold(x):  # [B, K, M, n] -> [P, K, (B / P) * M, n]: rows under one prefix become one matrix
        x = x.reshape(shared, rows // shared, heads, width, x.shape[-1])
        return x.swapaxes(1, 2).reshape(shared, heads, -1, x.shape[-1])

    def unfold(x):
        x = x.reshape(shared, heads, rows // shared, width, x.shape[-1])
        return x.swapaxes(1, 2).reshape(rows, heads, width, x.shape[-1])

    before = (fold(query) @ prefix_keys).astype(jnp.float32)
    before = unfold(jnp.where(prefix_mask[:, None, None, :], before, MASKED))
    weights = jax.nn.softmax(jnp.concatenate([before, scores], axis=-1), axis=-1)
    weights = weights.astype(values.dtype)
    length = prefix_keys.shape[-1]
    shared_part = unfold(fold(weights[..., :length]) @ prefix_values)
    return shared_part + weights[..., length:] @ values
