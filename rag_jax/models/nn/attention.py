"""Attention within whole rows by fused kernels, which keep no scores `[B, H, T, T]`.

Training and scoring without a cache read whole rows. `mask_rows` says what the rows' tokens attend
to, in the form that the best kernel of the platform takes, and `layers.attend` follows it. On CPU,
for short rows and for sizes that no kernel has, that is an array for plain XLA.

The letters in shapes are those of `rag_jax.models.nn.layers`.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rag_jax.runtime.platforms import find_platform
from rag_jax.runtime.sharding import count_data_rows, list_free_axes

Kernel = Literal["xla", "cudnn", "splash"]

MASKED = -1e9  # finite: a row of `-inf` would make softmax return NaN
# Shorter rows have scores of few megabytes, which XLA computes in one piece.
_SHORTEST = 1024
_BLOCKS = (512, 256, 128)  # tokens, of splash attention's tiles; it has none below 128
_PADDING = -1  # the segment of padding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmentMask:
    """Attention of every token to the tokens of its own segment.

    Attributes:
        segments: number of each token's text; padding has a number of its own.
        kernel: what computes the attention.
        causal: whether a token attends to no later one.
        window: largest number of tokens that a token attends to, its own and those before it; None
            for all. For a causal mask and the kernel "splash" alone.
    """

    segments: Int[Array, "B T"]
    kernel: Kernel = field(metadata={"static": True})
    causal: bool = field(default=True, metadata={"static": True})
    window: int | None = field(default=None, metadata={"static": True})


def choose_kernel(rows: int, width: int, head_dim: int, dtype: Any) -> Kernel:
    """The kernel for whole rows of `width` tokens on the mesh in effect.

    "splash" is Pallas' for TPUs and "cudnn" is cuDNN's for NVIDIA's GPUs since Ampere, which has
    the 16-bit types alone. Both run on a device's own rows: where the mesh does not divide the
    rows, as for the single row of an adapter in a bank, it is "xla".
    """
    if width < _SHORTEST or rows % count_data_rows():
        return "xla"
    platform = find_platform()
    if platform == "tpu":
        return "splash"
    fits = head_dim % 8 == 0 and head_dim <= 128 and jnp.dtype(dtype).itemsize == 2
    return "cudnn" if platform == "gpu" and fits and _has_flash_attention() else "xla"


def mask_rows(
    token_mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None,
    kernel: Kernel,
    *,
    causal: bool = True,
) -> Bool[Array, "B T T"] | Bool[Array, "B 1 T"] | SegmentMask:
    """What the tokens of whole rows attend to: their own text's tokens, if `causal` no later ones.

    Args:
        token_mask: False on padding, to which no other token attends. What padding itself attends
            to depends on the kernel.
        segments: number of each token's text, or None for one text a row.
    """
    if kernel != "xla":
        segments = jnp.zeros(token_mask.shape, jnp.int32) if segments is None else segments
        return SegmentMask(jnp.where(token_mask, segments, _PADDING), kernel, causal)
    width = token_mask.shape[1]
    mask = token_mask[:, None, :]  # [B, 1, T]
    if causal:
        mask = mask & jnp.tril(jnp.ones((1, width, width), bool))
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return mask


def mask_slots(
    token_mask: Bool[Array, "B S"], slot: Int[Array, ""] | int, width: int
) -> Bool[Array, "B T S"]:
    """What a chunk of `width` tokens from `slot` on attends to: the row's tokens up to each."""
    query_slots = slot + jnp.arange(width)
    # Causality, slot by slot: [1, T, S].
    causal = jnp.arange(token_mask.shape[1])[None, None, :] <= query_slots[None, :, None]
    return token_mask[:, None, :] & causal


def attend_rows(
    query: Float[Array, "B K M d"],
    keys: Float[Array, "B K d T"],
    values: Float[Array, "B K T d"],
    mask: SegmentMask,
) -> Float[Array, "B K M d"]:
    """Grouped-query attention within whole rows, by the mask's kernel.

    On a mesh every device computes its own rows over `data`, and over `model` its own heads if the
    axis divides the key heads.

    Args:
        query: rotated queries; scaled here by `1 / sqrt(d)`.
    """
    rows, groups, _, depth = query.shape
    width = values.shape[2]
    # [B, K, (H / K) * T, d] -> [B, H, T, d]
    heads = query.reshape(rows, -1, width, depth)
    kernel = {"cudnn": _attend_cudnn, "splash": _attend_splash}[mask.kernel]
    compute = partial(kernel, causal=mask.causal)
    if mask.window is not None:
        compute = partial(_attend_splash_window, window=mask.window)
    sizes = list_free_axes()
    if any(size > 1 for size in sizes.values()):
        split = sizes.get("model", 1) > 1 and groups % sizes["model"] == 0
        data = "data" if "data" in sizes else None
        by_head = PartitionSpec(data, "model" if split else None)
        specs = (by_head, by_head, by_head, PartitionSpec(data))
        compute = jax.shard_map(
            compute, in_specs=specs, out_specs=by_head, axis_names=set(sizes), check_vma=False
        )
    return compute(heads, keys.swapaxes(2, 3), values, mask.segments).reshape(query.shape)


def _attend_cudnn(
    query: Float[Array, "B H T d"],
    keys: Float[Array, "B K T d"],
    values: Float[Array, "B K T d"],
    segments: Int[Array, "B T"],
    *,
    causal: bool,
    implementation: str = "cudnn",
) -> Float[Array, "B H T d"]:
    width = segments.shape[1]
    # With a mask, cuDNN has no gradients of rows of an odd length.
    query, keys, values, segments = _pad_rows(query, keys, values, segments, multiple=2)
    same = segments[:, None, :, None] == segments[:, None, None, :]  # [B, 1, T, T]
    query, keys, values = (x.swapaxes(1, 2) for x in (query, keys, values))  # [B, T, heads, d]
    y = jax.nn.dot_product_attention(
        query, keys, values, mask=same, is_causal=causal, implementation=implementation
    )
    return y.swapaxes(1, 2)[:, :, :width]


def _attend_splash(
    query: Float[Array, "B H T d"],
    keys: Float[Array, "B K T d"],
    values: Float[Array, "B K T d"],
    segments: Int[Array, "B T"],
    *,
    causal: bool,
    window: int | None = None,
) -> Float[Array, "B H T d"]:
    # Imported late: Pallas takes half a second.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, heads, width, depth = query.shape
    block = _choose_block(width)
    query = query * jnp.asarray(depth**-0.5, query.dtype)
    query, keys, values, segments = _pad_rows(query, keys, values, segments, multiple=block)
    shape = (segments.shape[1],) * 2
    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    if window is not None:
        mask = splash.LocalMask(shape, (window - 1, 0), 0)
    backward = {"block_q_dkv": block, "block_kv_dkv": block, "block_q_dq": block}
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(block, block, **backward, block_kv_dq=block),
        head_shards=1,
        q_seq_shards=1,
        interpret=find_platform() != "tpu",
    )
    y = jax.vmap(kernel)(query, keys, values, splash.SegmentIds(q=segments, kv=segments))
    return y[:, :, :width]


def _attend_splash_window(
    query: Float[Array, "B H T d"],
    keys: Float[Array, "B K T d"],
    values: Float[Array, "B K T d"],
    segments: Int[Array, "B T"],
    *,
    window: int,
) -> Float[Array, "B H T d"]:
    """Attention to the last `window` tokens of a text, wherever padding and other texts stand."""
    # The kernel's window counts columns: each text's tokens are moved side by side.
    order = jnp.argsort(segments, axis=1, stable=True)
    moved = [jnp.take_along_axis(x, order[:, None, :, None], axis=2) for x in (query, keys, values)]
    moved_segments = jnp.take_along_axis(segments, order, axis=1)
    y = _attend_splash(*moved, moved_segments, causal=True, window=window)
    return jnp.take_along_axis(y, jnp.argsort(order, axis=1)[:, None, :, None], axis=2)


def _pad_rows(*heads: Array, multiple: int) -> tuple[Array, ...]:
    """Queries, keys, values and segments, padded to a number of tokens that `multiple` divides."""
    *arrays, segments = heads
    padding = -segments.shape[1] % multiple
    arrays = [jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in arrays]
    segments = jnp.pad(segments, ((0, 0), (0, padding)), constant_values=_PADDING)
    return *arrays, segments


def _choose_block(width: int) -> int:
    """The largest tile that pads a row by an eighth at most."""
    return next((b for b in _BLOCKS if -width % b <= width // 8), _BLOCKS[-1])


def _has_flash_attention() -> bool:
    device = jax.devices("gpu")[0]
    is_nvidia = "cuda" in device.client.platform_version
    return is_nvidia and float(device.compute_capability) >= 8
