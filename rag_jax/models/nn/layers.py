"""Layers shared by all models: linear with optional LoRA, norms, gated FFN, attention.

Activations are flat, `[N, D]` with `N = B * T` tokens. Why flat: a weight gradient of `[B, T, D]`
activations contracts two axes, which runs at half speed on CPU, while `[B * T, D]` is one large
matrix product. The batch axis stays the major one, so sharding over it is unaffected.

Letters in shapes, here and in the models: `B` rows, `T` tokens of a row, `N = B * T`, `D` hidden
features, `H` query heads, `K` key heads, `d` features of a head, `S` cache slots, `P` prefixes (or
encoded sources, or adapters), each for `B / P` consecutive rows, and `L` tokens of a prefix.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.attention import MASKED, SegmentMask, attend_rows
from rag_jax.models.nn.decoder_config import Activation
from rag_jax.models.nn.window_slots import WindowSlots, attend_window
from rag_jax.models.nn.windows import WindowBlocks, attend_blocks


def read_param(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Any:
    """A module's parameter, made by `init` if the model is being initialised.

    Flax's `param` traces `init` at every call to compare shapes, which takes longer than the layer.
    """
    found = module.get_variable("params", name)
    if getattr(unwrap(found), "shape", None) == shape:
        return found
    return module.param(name, init, shape)


def unwrap(kernel: Any) -> Any:
    """The array of a kernel that may be a `lora.AdaptedKernel`."""
    return getattr(kernel, "array", kernel)


class Linear(nn.Module):
    """Linear layer: `x @ kernel + bias`, plus `(x @ lora_a) @ lora_b` if an adapter is applied.

    `rag_jax.lora.apply` adds `lora_a` and `lora_b` next to a kernel: one adapter for the whole
    batch, or `P` adapters, each for `N / P` consecutive tokens. The models need no other code for
    LoRA. With `kernel_scale` beside it, the kernel is in int8, see `rag_jax.models.int8`.
    """

    features: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        shape = (x.shape[-1], self.features)
        kernel = unwrap(read_param(self, "kernel", nn.initializers.normal(0.02), shape))
        if self.has_variable("params", "kernel_scale"):
            y = x @ kernel.astype(x.dtype) * self.get_variable("params", "kernel_scale")[None]
        else:
            y = x @ kernel
        if self.use_bias:
            y = y + read_param(self, "bias", nn.initializers.zeros, (self.features,))[None]
        if self.has_variable("params", "lora_a"):
            a, b = (self.get_variable("params", name) for name in ("lora_a", "lora_b"))
            y = y + adapt(x, a, b).astype(y.dtype)
        return y


def adapt(
    x: Float[Array, "N D"],
    a: Float[Array, "D r"] | Float[Array, "P D r"],
    b: Float[Array, "r F"] | Float[Array, "P r F"],
) -> Float[Array, "N F"]:
    """The low-rank update `(x @ a) @ b`.

    Args:
        a: down-projection of one adapter, or of `P` adapters: the first for the first `N / P`
            tokens, and so on.
        b: up-projection, scale included.
    """
    if a.ndim == 2:
        return (x @ a) @ b
    parts = x.reshape(a.shape[0], -1, x.shape[-1])  # [N, D] -> [P, N / P, D]
    return ((parts @ a) @ b).reshape(x.shape[0], -1)  # [P, N / P, F] -> [N, F]


def check_adapters(params: Mapping, rows: int) -> None:
    """Checks that the rows of a batch divide evenly among the adapters of every layer.

    The layers see tokens, not rows. If the tokens divided and the rows did not, one row would get
    two adapters.

    Raises:
        ValueError: a layer's number of adapters does not divide `rows`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if getattr(path[-1], "key", "") == "lora_a" and leaf.ndim == 3 and rows % len(leaf):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{where}: {len(leaf)} adapters for a batch of {rows} rows; "
                f"make the number of rows a multiple of {len(leaf)}"
            )


def check_vocabulary(tokens: Int[Array, "B T"], vocab_size: int) -> None:
    """Checks token ids outside `jax.jit`, where their values are known and on this machine.

    JAX clamps an id out of range, so the model would read another token.

    Raises:
        ValueError: an id is not from 0 to `vocab_size` - 1.
    """
    if isinstance(tokens, jax.core.Tracer) or not tokens.size:
        return
    if isinstance(tokens, jax.Array) and not tokens.is_fully_addressable:
        return
    ids = np.asarray(tokens)  # known too where a traced function closes over it
    least, most = ids.min(), ids.max()
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise ValueError(f"tokens: the id {wrong}, but the model's ids are 0 to {vocab_size - 1}")


class RMSNorm(nn.Module):
    """RMS norm, `x / rms(x) * scale`, with float32 statistics (Zhang and Sennrich 2019).

    With `offset`, `1 + scale` takes the place of `scale`, and the product is float32 too (Gemma).
    """

    eps: float
    offset: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        scale = read_param(self, "scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.offset:
            return (wide * inverse * (1 + scale.astype(jnp.float32))[None]).astype(x.dtype)
        return (wide * inverse).astype(x.dtype) * scale[None]


class LayerNorm(nn.Module):
    """Layer norm, `(x - mean) / std * scale + bias`, with float32 statistics (Ba et al. 2016)."""

    eps: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        scale = read_param(self, "scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        y = (wide * inverse).astype(x.dtype) * scale[None]
        if not self.use_bias:
            return y
        return y + read_param(self, "bias", nn.initializers.zeros, (x.shape[-1],))[None]


class GatedFFN(nn.Module):
    """Gated feed-forward network, `down(activation(gate(x)) * up(x))` (Shazeer 2020)."""

    size: int
    activation: Activation = "silu"

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        gate = Linear(self.size, name="gate")(x)
        up = Linear(self.size, name="up")(x)
        gate = nn.silu(gate) if self.activation == "silu" else nn.gelu(gate, approximate=True)
        return Linear(x.shape[-1], name="down")(gate * up)


def attend(
    query: Float[Array, "B K M d"],
    keys: Float[Array, "B K d S"],
    values: Float[Array, "B K S d"],
    mask: Bool[Array, "B 1 M S"] | SegmentMask | WindowBlocks | WindowSlots,
    *,
    prefix: tuple[Float[Array, "P K d L"], Float[Array, "P K L d"]] | None = None,
    prefix_mask: Bool[Array, "P L"] | Bool[Array, "B 1 M L"] | None = None,
    bias: Float[Array, "1 K M S"] | None = None,
) -> Float[Array, "B K M d"]:
    """Grouped-query attention to each row's keys and, optionally, to a shared prefix before them.

    The axis `M = (H / K) * T` stacks the query heads that share a key head, so that both products
    are plain batched matrix products. Keys have their slots on the last axis: with one query per
    row, XLA on CPU is eight times faster in this layout than with slots before heads.

    Args:
        query: rotated queries; scaled here by `1 / sqrt(d)`.
        mask: attention mask, True where a query may look; or for whole rows without a prefix what
            `attention.mask_rows` makes for a fused kernel; or blocks of queries and keys, or the
            slots of a sliding layer, which know of the prefix what its mask tells otherwise.
        prefix: keys and values of `P` prefixes. Each prefix is stored once and read by `B / P`
            consecutive rows.
        prefix_mask: token mask of the prefixes, or the attention mask of each query.
        bias: what is added to the scores of the row's keys; for arrays as `mask` alone.
    """
    if isinstance(mask, SegmentMask):
        return attend_rows(query, keys, values, mask)
    if isinstance(mask, WindowBlocks):
        return attend_blocks(query, keys, values, mask, prefix)
    if isinstance(mask, WindowSlots):
        return attend_window(attend, query, keys, values, mask, prefix)
    rows, heads, width, depth = query.shape
    query = query * jnp.asarray(depth**-0.5, query.dtype)
    scores = (query @ keys).astype(jnp.float32)
    scores = jnp.where(mask, scores if bias is None else scores + bias, MASKED)
    if prefix is None:
        return jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values
    prefix_keys, prefix_values = prefix
    prefixes = prefix_keys.shape[0]

    # The rows after one prefix become one matrix: [B, K, M, n] <-> [P, K, (B / P) * M, n].
    def fold(x):
        x = x.reshape(prefixes, rows // prefixes, heads, width, x.shape[-1])
        return x.swapaxes(1, 2).reshape(prefixes, heads, -1, x.shape[-1])

    def unfold(x):
        x = x.reshape(prefixes, heads, rows // prefixes, width, x.shape[-1])
        return x.swapaxes(1, 2).reshape(rows, heads, width, x.shape[-1])

    prefix_scores = (fold(query) @ prefix_keys).astype(jnp.float32)
    if prefix_mask.ndim == 2:
        prefix_scores = unfold(jnp.where(prefix_mask[:, None, None, :], prefix_scores, MASKED))
    else:
        prefix_scores = jnp.where(prefix_mask, unfold(prefix_scores), MASKED)
    # One softmax over prefix and row: [B, K, M, L + S].
    weights = jax.nn.softmax(jnp.concatenate([prefix_scores, scores], axis=-1), axis=-1)
    weights = weights.astype(values.dtype)
    length = prefix_keys.shape[-1]
    from_prefix = unfold(fold(weights[..., :length]) @ prefix_values)
    return from_prefix + weights[..., length:] @ values
