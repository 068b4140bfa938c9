"""The decoder of all families: pre-norm, rotary positions, grouped-query attention, gated FFN.

The letters in shapes are those of `rag_jax.models.nn.layers`. `S` is the number of keys of a row:
the cache's slots, or the row's `T` tokens if there is no cache.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.attention import SegmentMask, choose_kernel, mask_rows, mask_slots
from rag_jax.models.nn.chunk import Chunk, LayerCache, Output
from rag_jax.models.nn.decoder_config import DecoderConfig, LayerKind
from rag_jax.models.nn.layers import (
    MASKED,
    GatedFFN,
    LayerNorm,
    Linear,
    RMSNorm,
    attend,
    check_adapters,
    check_vocabulary,
)
from rag_jax.models.nn.pooling import MEAN, Pooling
from rag_jax.models.nn.rope import Angles, LongScaling, rotary_angles, rotate
from rag_jax.models.nn.stack import rematerialize, run_layer, scan_layers
from rag_jax.models.nn.tokens import TokenTable, score_by_head
from rag_jax.models.nn.windows import limit_to_both_sides, limit_to_window
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import constrain_rows


def _norm(config: DecoderConfig, **options) -> nn.Module:
    if config.layer_norm:
        return LayerNorm(config.norm_eps, **options)
    return RMSNorm(config.norm_eps, config.offset_norms, **options)


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

        def project(name: str, heads: int, *, norm: bool = False) -> Float[Array, "B heads T d"]:
            y = Linear(heads * c.head_dim, use_bias=c.qkv_bias, name=name)(x)
            if norm:
                y = _norm(c, name=f"{name}_norm")(y.reshape(-1, c.head_dim))
            # [B * T, heads * d] -> [B, heads, T, d]
            return y.reshape(rows, width, heads, c.head_dim).swapaxes(1, 2)

        def place(x: Float[Array, "B heads T d"]) -> Float[Array, "B heads T d"]:
            return x if chunk.angles is None else rotate(x, chunk.angles)

        query = place(project("query", c.num_heads, norm=c.query_key_norm))
        if c.query_scalar is not None and c.query_scalar != c.head_dim:
            query = query * jnp.asarray((c.head_dim / c.query_scalar) ** 0.5, query.dtype)
        # [B, H, T, d] -> [B, K, (H / K) * T, d]: the query heads of a key head are one matrix.
        query = query.reshape(rows, c.num_kv_heads, groups * width, c.head_dim)
        keys = place(project("key", c.num_kv_heads, norm=c.query_key_norm))
        keys = keys.swapaxes(2, 3)  # [B, K, d, T]
        values = project("value", c.num_kv_heads)  # [B, K, T, d]
        if chunk.cache is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            keys = write(chunk.cache[0], keys, slot, axis=3)
            values = write(chunk.cache[1], values, slot, axis=2)
        # [B, 1, T, S] -> [B, 1, (H / K) * T, S]; what is no array knows the heads.
        mask, prefix_mask = (
            jnp.tile(x, (1, 1, groups, 1)) if getattr(x, "ndim", 0) == 4 else x
            for x in (chunk.attention_mask, chunk.prefix_mask)
        )
        y = attend(query, keys, values, mask, prefix=chunk.prefix, prefix_mask=prefix_mask)
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

        def norm_output(y: Float[Array, "N D"], name: str) -> Float[Array, "N D"]:
            return _norm(c, name=name)(y) if c.output_norms else y

        y, cache = Attention(c, name="attention")(_norm(c, name="attention_norm")(x), chunk)
        x = x + norm_output(y, "attention_output_norm")
        y = GatedFFN(c.ffn_size, c.activation, name="ffn")(_norm(c, name="ffn_norm")(x))
        x = x + norm_output(y, "ffn_output_norm")
        return constrain_rows(x, chunk.batch_shape[0]), cache


class Decoder(nn.Module):
    """Decoder-only language model; `apply({"params": params}, tokens)` gives logits `[B, T, V]`.

    Layers are a plain list: scanning over stacked layers copies each layer's weights at every
    step, which makes decoding on CPU twice as slow.

    Attributes:
        remat: activations that the backward pass computes again, as for `rematerialize`.
        scan_layers: whether passes over whole rows scan over the layers, so that one is compiled.
        pooling: how `retrieval.encode.embed` makes an embedding of the states, by the files of a
            decoder that was trained to; None for a language model alone.
    """

    config: DecoderConfig
    remat: str = "none"
    scan_layers: bool = False
    pooling: Pooling | None = None

    @property
    def embedding_size(self) -> int:
        """Number of features of a text's embedding (`E`)."""
        return (self.pooling or MEAN).count_features(self.config.hidden_size)

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
        mask: Bool[Array, "B S"] | Bool[Array, "B T S"] | None = None,
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
            mask: without a cache, the token mask `[B, T]`; with a cache, that of all its slots,
                `[B, S]`, this chunk's among them. Causality is added. With a cache, it may also be
                the attention mask `[B, T, S]` over the slots. A token attends to its own slot; one
                that does not is padding.
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
            RagJaxError: the cache is longer than the model's rotary positions allow, or the model
                only embeds texts.
            ValueError: the adapters in the parameters do not divide the rows.
        """
        c, (rows, width) = self.config, tokens.shape
        check_adapters(self.variables.get("params", {}), rows)
        token_mask = None
        if cache is None:
            token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask
            dtype = self.embed.embedding.dtype
            kernel = choose_kernel(rows, width, c.head_dim, dtype)
            kernel = "xla" if prefix or c.bidirectional else kernel
            causal = not c.bidirectional
            attention_mask = mask_rows(token_mask, segments, kernel, causal=causal)  # [B, T, T]
            if c.bidirectional:
                attention_mask = jnp.broadcast_to(attention_mask, (rows, width, width))
            if positions is None:
                positions = jnp.maximum(jnp.cumsum(token_mask, axis=1) - 1, 0)
        else:
            if c.bidirectional:
                raise RagJaxError("the model's tokens attend to later ones: it only embeds texts")
            attention_mask = mask  # [B, T, S]
            if mask.ndim == 2:
                token_mask, attention_mask = mask, mask_slots(mask, slot, width)
            if isinstance(c.rope_scaling, LongScaling):
                slots = attention_mask.shape[-1] if length is None else length
                c.rope_scaling.check_cache(slots + (prefix[0][0].shape[-1] if prefix else 0))
        x = self.embed(tokens).reshape(rows * width, c.hidden_size)
        if c.scale_embedding:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        x = constrain_rows(x, rows)
        layer_output, layer_caches = (x if return_layer == 0 else None), []
        reach = partial(
            limit_to_window, width=width, token_mask=token_mask, segments=segments, slot=slot
        )
        if c.bidirectional:
            reach = partial(limit_to_both_sides, positions=positions)
        turn = partial(rotary_angles, positions, rotary_dim=c.rotary_dim, segments=segments)
        chunks = self._make_chunks(attention_mask, turn, slot, prefix_mask, reach)
        scans = self.scan_layers and cache is prefix is return_layer is None
        if scans and not self.is_initializing():
            kinds = list(chunks)
            x = scan_layers(
                self.layers,
                x,
                self._rematerialize,
                kinds=[kinds.index(kind) for kind in c.layer_kinds],
                inputs=[{"chunk": chunk} for chunk in chunks.values()],
            )
            return Output(self.final_norm(x).reshape(rows, width, c.hidden_size), None, None)
        for i, layer in enumerate(self.layers):
            own = chunks[c.layer_kinds[i]]
            own = own._replace(cache=cache and cache[i], prefix=prefix and prefix[i])
            x, layer_cache = self._rematerialize(partial(run_layer, layer, chunk=own))(x)
            layer_caches.append(layer_cache)
            if return_layer == i + 1:
                layer_output = x
        x = self.final_norm(x).reshape(rows, width, c.hidden_size)
        if layer_output is not None:
            layer_output = layer_output.reshape(rows, width, c.hidden_size)
        return Output(x, tuple(layer_caches) if cache is not None else None, layer_output)

    def _make_chunks(
        self,
        mask: Bool[Array, "B T S"] | SegmentMask,
        turn: Callable[..., Angles],
        slot: Int[Array, ""] | int,
        prefix_mask: Bool[Array, "P L"] | None,
        limit: Callable,
    ) -> dict[LayerKind, Chunk]:
        """The inputs of each kind of layer, without a cache and a prefix.

        Args:
            mask: attention mask of the layers without a window.
            turn: `rotary_angles` of the positions.
            limit: of a mask and the number of tokens of a window, the mask of a sliding layer.
        """
        c, chunks = self.config, {}
        angles = turn(theta=c.rope_theta, scaling=c.rope_scaling)
        for kind in dict.fromkeys(c.layer_kinds):
            own, own_prefix, own_angles = mask, prefix_mask, angles if kind.rotates else None
            if kind.slides:
                own, own_prefix = limit(mask, c.window, prefix_mask=prefix_mask)
                if kind.rotates and c.local_rope_theta is not None:
                    own_angles = turn(theta=c.local_rope_theta)
            # [B, T, S] -> [B, 1, T, S]
            own, own_prefix = (
                x[:, None] if getattr(x, "ndim", 0) == 3 else x for x in (own, own_prefix)
            )
            chunks[kind] = Chunk(own_angles, own, None, slot, None, own_prefix)
        return chunks

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
        return rematerialize(run_layer, self.remat, scans=self.scan_layers)
