"""The decoder of all families: pre-norm, rotary positions, grouped-query attention, gated FFN.

The letters in shapes are those of `rag_jax.models.nn.layers`. `S` is the number of keys of a row:
the cache's slots, or the row's `T` tokens if there is no cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.attention import SegmentMask, choose_kernel, mask_rows
from rag_jax.models.nn.layers import (
    MASKED,
    GatedFFN,
    LayerNorm,
    Linear,
    RMSNorm,
    attend,
    check_adapters,
    check_vocabulary,
    run_layer,
    scan_layers,
)
from rag_jax.models.nn.rope import Angles, LlamaScaling, LongScaling, rotary_angles, rotate
from rag_jax.models.nn.tokens import TokenTable, score_by_head
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import constrain_rows

# Keys and values of one layer.
LayerCache = tuple[Float[Array, "B K d S"], Float[Array, "B K S d"]]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder and the options in which the model families differ.

    Attributes:
        vocab_size: number of rows of the embedding, padding rows included.
        hidden_size: features of the residual stream (`D`).
        ffn_size: features of the FFN's hidden layer.
        num_heads: query heads (`H`).
        num_kv_heads: key heads (`K`), a divisor of `num_heads`.
        head_dim: features of a head (`d`).
        rope_theta: base of the rotary frequencies.
        norm_eps: constant under the root of every norm.
        tie_embeddings: whether the output layer is the transposed embedding.
        max_length: longest context in training, in tokens.
        family: Hugging Face's `model_type`, which determines the names of the stored weights.
        layer_norm: True for layer norms with a bias, False for RMS norms.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        rotary_fraction: fraction of each head's features that is rotated.
        rope_scaling: context extension of the rotary positions; None for none.
        vocab_padding: number of rows at the end of the embedding that belong to no token. Padding
            rows are never generated.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    max_length: int
    family: str = "llama"
    layer_norm: bool = False
    qkv_bias: bool = False
    rotary_fraction: float = 1.0
    rope_scaling: LlamaScaling | LongScaling | None = None
    vocab_padding: int = 0

    @property
    def rotary_dim(self) -> int:
        """Number of features of a head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    def count_flops(self, tokens: int, targets: int) -> float:
        """Floating-point operations of a forward pass: the matrix products with the weights.

        The products of attention (queries with keys, weights with values) are not counted.
        `targets` is the number of positions with logits.
        """
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.ffn_size)
        head = self.hidden_size * self.vocab_size
        return 2.0 * (tokens * self.num_layers * layer + targets * head)

    @property
    def slot_flops(self) -> float:
        """Operations of a token's attention to one slot, which `count_flops` leaves out."""
        return 4.0 * self.num_heads * self.head_dim * self.num_layers


class Output(NamedTuple):
    """Result of a pass over a chunk of tokens.

    Attributes:
        hidden: hidden states after the final norm, the input of `Decoder.logits`.
        cache: keys and values of every layer, this chunk included; None without a cache.
        layer_output: residual stream after the layer named by `return_layer`, or None.
    """

    hidden: Float[Array, "B T D"]
    cache: tuple[LayerCache, ...] | None
    layer_output: Float[Array, "B T D"] | None


class Chunk(NamedTuple):
    """Inputs of a layer besides the residual stream of a chunk of tokens.

    Attributes:
        angles: cosines and sines of the tokens' positions.
        attention_mask: True where a query may look; or what `mask_rows` makes for whole rows.
        cache: keys and values of the row's earlier tokens; None if the chunk is the whole row.
        slot: first slot of the chunk in the cache.
        prefix: keys and values of `P` prefixes, each shared by `B / P` consecutive rows.
        prefix_mask: token mask of the prefixes.
    """

    angles: Angles
    attention_mask: Bool[Array, "B 1 T S"] | SegmentMask
    cache: LayerCache | None
    slot: Int[Array, ""] | int
    prefix: LayerCache | None
    prefix_mask: Bool[Array, "P L"] | None

    @property
    def batch_shape(self) -> tuple[int, int]:
        """`(B, T)`, for the unflattening of `N = B * T`."""
        if isinstance(self.attention_mask, SegmentMask):
            return self.attention_mask.segments.shape
        rows, _, width, _ = self.attention_mask.shape
        return rows, width


def _norm(config: DecoderConfig, **options) -> nn.Module:
    return (LayerNorm if config.layer_norm else RMSNorm)(config.norm_eps, **options)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions (Ainslie et al. 2023)."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "N D"], chunk: Chunk
    ) -> tuple[Float[Array, "N D"], LayerCache]:
        """Attends from every token of the chunk to the row's keys and to those of its prefix.

        Returns:
            The output, and the keys and values of the row, this chunk included.
        """
        c, (rows, width), slot = self.config, chunk.batch_shape, chunk.slot
        groups = c.num_heads // c.num_kv_heads

        def project(name: str, heads: int) -> Float[Array, "B heads T d"]:
            y = Linear(heads * c.head_dim, use_bias=c.qkv_bias, name=name)(x)
            # [B * T, heads * d] -> [B, heads, T, d]
            return y.reshape(rows, width, heads, c.head_dim).swapaxes(1, 2)

        query = rotate(project("query", c.num_heads), chunk.angles)
        # [B, H, T, d] -> [B, K, (H / K) * T, d]: the query heads of a key head are one matrix.
        query = query.reshape(rows, c.num_kv_heads, groups * width, c.head_dim)
        keys = rotate(project("key", c.num_kv_heads), chunk.angles).swapaxes(2, 3)  # [B, K, d, T]
        values = project("value", c.num_kv_heads)  # [B, K, T, d]
        if chunk.cache is not None:
            keys = jax.lax.dynamic_update_slice(chunk.cache[0], keys, (0, 0, 0, slot))
            values = jax.lax.dynamic_update_slice(chunk.cache[1], values, (0, 0, slot, 0))
        mask = chunk.attention_mask
        if not isinstance(mask, SegmentMask):
            mask = jnp.tile(mask, (1, 1, groups, 1))  # [B, 1, (H / K) * T, S]
        y = attend(query, keys, values, mask, prefix=chunk.prefix, prefix_mask=chunk.prefix_mask)
        # [B, K, (H / K) * T, d] -> [B, T, H, d] -> [B * T, H * d]
        y = y.reshape(rows, c.num_heads, width, c.head_dim).swapaxes(1, 2)
        y = Linear(c.hidden_size, name="output")(y.reshape(rows * width, -1))
        return y, (keys, values)


class Layer(nn.Module):
    """Pre-norm Transformer layer: `x + attention(norm(x))`, then `x + ffn(norm(x))`."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "N D"], chunk: Chunk
    ) -> tuple[Float[Array, "N D"], LayerCache]:
        """Runs the layer; arguments and results are those of `Attention`."""
        c = self.config
        y, cache = Attention(c, name="attention")(_norm(c, name="attention_norm")(x), chunk)
        x = x + y
        x = x + GatedFFN(c.ffn_size, name="ffn")(_norm(c, name="ffn_norm")(x))
        return constrain_rows(x, chunk.batch_shape[0]), cache


class Decoder(nn.Module):
    """Decoder-only language model; `apply({"params": params}, tokens)` gives logits `[B, T, V]`.

    Layers are a plain list: scanning over stacked layers copies each layer's weights at every
    step, which makes decoding on CPU twice as slow.

    Attributes:
        remat: activations that the backward pass recomputes to save memory: "none"; "full", all
            within a layer; or "dots", all within a layer except the results of its projections.
        scan_layers: whether passes over whole rows scan over the layers, so that one is compiled.
    """

    config: DecoderConfig
    remat: str = "none"
    scan_layers: bool = False

    def setup(self):
        c = self.config
        self.embed = TokenTable(c.vocab_size, c.hidden_size)
        self.layers = [Layer(c) for _ in range(c.num_layers)]
        self.final_norm = _norm(c)
        if not c.tie_embeddings:
            self.head = Linear(c.vocab_size)

    @checked
    def __call__(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of every position.

        Args:
            mask: token mask; padding may be anywhere in a row. None if there is no padding.

        Raises:
            TypeError: `tokens` or `mask` is no array of integers or booleans.
            ValueError: the two differ in shape, or an id is not in the vocabulary (outside `jit`).
        """
        check_vocabulary(tokens, self.config.vocab_size)
        return self.logits(self.hidden(tokens, mask=mask).hidden)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | Bool[Array, "B T S"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Sequence[LayerCache] | None = None,
        slot: Int[Array, ""] | int = 0,
        length: int | None = None,
        prefix: Sequence[LayerCache] | None = None,
        prefix_mask: Bool[Array, "P L"] | None = None,
        return_layer: int | None = None,
    ) -> Output:
        """Hidden states of a chunk of tokens.

        Args:
            mask: without a cache, the token mask `[B, T]`, to which causality is added. With a
                cache, the attention mask `[B, T, S]` over the cache's slots.
            positions: rotary positions; by default the number of tokens before each token, without
                padding. Required with a cache or segments.
            segments: without a cache, the number of each token's text where several texts share a
                row. Tokens attend within their own text. Padding has a number of its own.
            cache: keys and values of every layer, into which the chunk is written at `slot`.
            slot: first slot of the chunk in the cache, the same for every row.
            length: longest text in the cache, in slots, if several texts share the slots; by
                default `S`.
            prefix: keys and values of every layer for `P` prefixes, each shared by `B / P`
                consecutive rows.
            prefix_mask: token mask of the prefixes.
            return_layer: index of a layer whose output is returned too, numbered as in Hugging
                Face's `hidden_states`: 0 is the embedding, `num_layers` the last layer's output
                before the final norm. None for no layer.

        Raises:
            RagJaxError: the cache is longer than the model's rotary positions allow.
            ValueError: the adapters in the parameters do not divide the rows.
        """
        c, (rows, width) = self.config, tokens.shape
        check_adapters(self.variables.get("params", {}), rows)
        if cache is None:
            token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask
            dtype = self.embed.embedding.dtype
            kernel = "xla" if prefix else choose_kernel(rows, width, c.head_dim, dtype)
            attention_mask = mask_rows(token_mask, segments, kernel)  # [B, T, T]
            if positions is None:
                positions = jnp.maximum(jnp.cumsum(token_mask, axis=1) - 1, 0)
        else:
            attention_mask = mask  # [B, T, S]
            if isinstance(c.rope_scaling, LongScaling):
                slots = attention_mask.shape[-1] if length is None else length
                c.rope_scaling.check_cache(slots + (prefix[0][0].shape[-1] if prefix else 0))
        angles = rotary_angles(
            positions, rotary_dim=c.rotary_dim, theta=c.rope_theta, scaling=c.rope_scaling
        )
        x = constrain_rows(self.embed(tokens).reshape(rows * width, c.hidden_size), rows)
        layer_output, layer_caches = (x if return_layer == 0 else None), []
        if not isinstance(attention_mask, SegmentMask):
            attention_mask = attention_mask[:, None]  # [B, 1, T, S]
        chunk = Chunk(angles, attention_mask, None, slot, None, prefix_mask)
        scans = self.scan_layers and cache is prefix is return_layer is None
        if scans and not self.is_initializing():
            x = scan_layers(self.layers, x, self._rematerialize, chunk=chunk)
            return Output(self.final_norm(x).reshape(rows, width, c.hidden_size), None, None)
        for i, layer in enumerate(self.layers):
            own = chunk._replace(cache=cache and cache[i], prefix=prefix and prefix[i])
            x, layer_cache = self._rematerialize(partial(run_layer, layer, chunk=own))(x)
            layer_caches.append(layer_cache)
            if return_layer == i + 1:
                layer_output = x
        x = self.final_norm(x).reshape(rows, width, c.hidden_size)
        if layer_output is not None:
            layer_output = layer_output.reshape(rows, width, c.hidden_size)
        return Output(x, tuple(layer_caches) if cache is not None else None, layer_output)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits over the vocabulary, about -1e9 for the padding rows of the embedding."""
        c, rows = self.config, hidden.shape[0]
        flat = constrain_rows(hidden.reshape(-1, c.hidden_size), rows)
        tied = c.tie_embeddings
        scores = self.embed.score(flat) if tied else score_by_head(self.head, flat)
        if c.vocab_padding:
            is_token = jnp.arange(c.vocab_size) < c.vocab_size - c.vocab_padding
            # float16 cannot hold MASKED.
            masked = max(MASKED, float(jnp.finfo(scores.dtype).min))
            scores = jnp.where(is_token[None], scores, jnp.asarray(masked, scores.dtype))
        return constrain_rows(scores, rows, free=True).reshape(*hidden.shape[:-1], -1)

    def _rematerialize(self, run_layer: Callable) -> Callable:
        if self.remat == "none":
            return run_layer
        # `jax.checkpoint` suffices: a layer reads parameters and writes no Flax variables.
        policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        # A loop keeps the passes apart by itself.
        prevent_cse = not self.scan_layers
        return jax.checkpoint(run_layer, policy=policies[self.remat], prevent_cse=prevent_cse)
