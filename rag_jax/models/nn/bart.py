"""BART: a post-norm encoder-decoder with learned positions (Lewis et al. 2020)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.models.nn.attention import Kernel, SegmentMask, choose_kernel, mask_rows
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.chunk import LayerCache, Output
from rag_jax.models.nn.layers import LayerNorm, check_adapters, check_vocabulary
from rag_jax.models.nn.post_norm import FFN, Attention, EncoderLayer
from rag_jax.models.nn.stack import rematerialize, run_layer, scan_layers
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import constrain_rows

# The first rows of the position tables belong to no position, as in fairseq, BART's origin.
POSITION_OFFSET = 2
_NORM_EPS = 1e-5  # PyTorch's default; BART's config.json has no such field


class DecoderLayer(nn.Module):
    """Post-norm Transformer layer: self-attention, cross-attention to the source, FFN."""

    config: BartConfig

    def setup(self):
        c = self.config
        self.attention = Attention(c.hidden_size, c.decoder_heads)
        self.attention_norm = LayerNorm(_NORM_EPS)
        self.cross_attention = Attention(c.hidden_size, c.decoder_heads)
        self.cross_attention_norm = LayerNorm(_NORM_EPS)
        self.ffn = FFN(c.decoder_ffn_size)
        self.ffn_norm = LayerNorm(_NORM_EPS)

    def __call__(
        self,
        x: Float[Array, "N D"],
        *,
        attention_mask: Bool[Array, "B T S"] | SegmentMask,
        cache: LayerCache | None,
        slot: Int[Array, ""] | int,
        source: LayerCache,
        source_mask: Bool[Array, "P L"] | Bool[Array, "P M L"],
    ) -> tuple[Float[Array, "N D"], LayerCache]:
        """Runs the layer over a chunk of `N = B * T` tokens.

        Args:
            cache: keys and values of the row's earlier tokens; None if the chunk is the whole row.
            slot: first slot of the chunk in the cache.
            source: keys and values of `P` sources, each read by `B / P` consecutive rows.
            source_mask: token mask of the sources; or for each of the `M = N / P` tokens that read
                a source, True where it may look.

        Returns:
            The output, and the keys and values of the row, this chunk included.
        """
        if isinstance(attention_mask, SegmentMask):
            rows = len(attention_mask.segments)
        else:
            rows, attention_mask = len(attention_mask), attention_mask[:, None]  # [B, 1, T, S]
        keys, values = self.attention.read(x, rows)
        if cache is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            keys = write(cache[0], keys, slot, axis=3)
            values = write(cache[1], values, slot, axis=2)
        y = self.attention(x, keys=keys, values=values, attention_mask=attention_mask)
        x = self.attention_norm(x + y)
        sources, length = len(source_mask), source_mask.shape[-1]
        # [P, L] -> [P, 1, (B / P) * T, L]: the rows of one source are one matrix of queries.
        cross_mask = source_mask.reshape(sources, 1, -1, length)
        cross_mask = jnp.broadcast_to(cross_mask, (sources, 1, x.shape[0] // sources, length))
        y = self.cross_attention(x, keys=source[0], values=source[1], attention_mask=cross_mask)
        x = self.cross_attention_norm(x + y)
        return self.ffn_norm(x + self.ffn(x)), (keys, values)


class Bart(nn.Module):
    """Encoder-decoder; `apply({"params": params}, input_tokens, decoder_tokens)` gives logits.

    `hidden` and `logits` have the interface of `Decoder`, so that `rag_jax.decoding` runs on both
    models. The encoded source takes the place of a decoder's prefix.

    Attributes:
        remat: activations that the backward pass computes again, as for `rematerialize`.
        scan_layers: whether passes over whole rows scan over the layers, so that one is compiled.
    """

    config: BartConfig
    remat: str = "none"
    scan_layers: bool = False

    def setup(self):
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        self.encoder_position = nn.Embed(c.max_length + POSITION_OFFSET, c.hidden_size)
        self.encoder_norm = LayerNorm(_NORM_EPS)
        self.encoder_layers = [
            EncoderLayer(c.encoder_heads, c.encoder_ffn_size, _NORM_EPS)
            for _ in range(c.encoder_layers)
        ]
        self.decoder_position = nn.Embed(c.max_length + POSITION_OFFSET, c.hidden_size)
        self.decoder_norm = LayerNorm(_NORM_EPS)
        self.decoder_layers = [DecoderLayer(c) for _ in range(c.decoder_layers)]
        self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (1, c.vocab_size))

    @checked
    def __call__(
        self,
        input_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        mask: Bool[Array, "B S"] | Int[Array, "B S"] | None = None,
        decoder_mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of every decoder position.

        A token's position is its column, whatever the masks, as in the original BART.

        Args:
            decoder_tokens: token ids for the decoder, `start_id` first.
            mask: token mask of the input, boolean or 0 and 1; None if there is no padding.
            decoder_mask: token mask of the decoder's tokens; None if there is no padding.

        Raises:
            TypeError: an argument is no array of its kind.
            ValueError: the arrays differ in shape, an id is not in the vocabulary (outside `jit`),
                `S` or `T` exceeds `max_length`, or the adapters do not divide the rows.
        """
        for tokens in (input_tokens, decoder_tokens):
            check_vocabulary(tokens, self.config.vocab_size)
        source_mask = jnp.ones(input_tokens.shape, bool) if mask is None else mask.astype(bool)
        prefix = self.read_source(self.encode(input_tokens, source_mask))
        output = self.hidden(
            decoder_tokens, mask=decoder_mask, prefix=prefix, prefix_mask=source_mask
        )
        return self.logits(output.hidden)

    def encode(
        self,
        tokens: Int[Array, "B S"],
        mask: Bool[Array, "B S"] | Int[Array, "B S"] | None = None,
        *,
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """Hidden states after the encoder's last layer.

        Args:
            mask: token mask, boolean or 0 and 1; None if there is no padding.
            segments: as for `Decoder.hidden`.
            positions: learned positions; by default the columns. Required with segments.

        Raises:
            ValueError: `S` exceeds `max_length`, or the adapters do not divide the rows.
        """
        c, (rows, width) = self.config, tokens.shape
        if segments is None:
            self._check_length(width)
            positions = jnp.arange(width)[None]
        token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        kernel = self._choose_kernel(tokens, c.encoder_heads)
        attention_mask = mask_rows(token_mask, segments, kernel, causal=False)
        x = self._embed(tokens, positions, self.encoder_position, self.encoder_norm)
        given, wrap = {"attention_mask": attention_mask}, partial(self._wrap, rows)
        if self.scan_layers and not self.is_initializing():
            kinds = [0] * c.encoder_layers
            options = {"kinds": kinds, "inputs": [given], "pick": lambda x: x}
            x = scan_layers(self.encoder_layers, x, wrap, **options)
        else:
            for layer in self.encoder_layers:
                x = wrap(partial(run_layer, layer, **given))(x)
        return x.reshape(rows, width, c.hidden_size)

    def read_source(self, encoded: Float[Array, "P L D"]) -> tuple[LayerCache, ...]:
        """Keys and values of encoded sources for every layer, the `prefix` of `hidden`."""
        flat = encoded.reshape(-1, self.config.hidden_size)  # [P, L, D] -> [P * L, D]
        rows, layers = encoded.shape[0], self.decoder_layers
        return tuple(layer.cross_attention.read(flat, rows) for layer in layers)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        prefix: Sequence[LayerCache],
        prefix_mask: Bool[Array, "P L"] | Bool[Array, "P M L"],
        mask: Bool[Array, "B T"] | Bool[Array, "B T S"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Sequence[LayerCache] | None = None,
        slot: Int[Array, ""] | int = 0,
        length: int | None = None,
        return_layer: int | None = None,
    ) -> Output:
        """The decoder's hidden states of a chunk of tokens.

        Args:
            prefix: result of `read_source` for `P` sources, each read by `B / P` consecutive rows.
            prefix_mask: token mask of the sources; or for each of the `M` tokens of the rows that
                read a source, True where it may look.
            mask: without a cache, the token mask `[B, T]`, boolean or 0 and 1, to which causality
                is added. With a cache, the attention mask `[B, T, S]` over the cache's slots.
            positions: learned positions; by default the columns. Required with a cache or segments.
            segments: as for `Decoder.hidden`.
            cache: keys and values of every layer, into which the chunk is written at `slot`.
            slot: first slot of the chunk in the cache, the same for every row.
            length: longest text in the cache, in slots, if several share them; by default `S`.
            return_layer: index of a layer whose output is returned too: 0 is the embedding,
                `decoder_layers` the last layer, equal to `hidden`. None for no layer.

        Raises:
            ValueError: a text has more slots than there are positions, or the adapters do not
                divide the rows.
        """
        c, (rows, width) = self.config, tokens.shape
        if cache is None:
            token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
            kernel = self._choose_kernel(tokens, c.decoder_heads)
            attention_mask = mask_rows(token_mask, segments, kernel)  # [B, T, T]
            if positions is None:
                positions = jnp.arange(width)[None]
        else:
            attention_mask = mask
        if segments is None:
            slots = width if cache is None else attention_mask.shape[-1]
            self._check_length(slots if length is None else length)
        x = self._embed(tokens, positions, self.decoder_position, self.decoder_norm)
        layer_output, layer_caches = (x if return_layer == 0 else None), []
        given = {
            "attention_mask": attention_mask,
            "cache": None,
            "slot": slot,
            "source_mask": prefix_mask,
        }
        wrap, sources = partial(self._wrap, rows), [{"source": source} for source in prefix]
        if self.scan_layers and cache is return_layer is None and not self.is_initializing():
            options = {"kinds": [0] * c.decoder_layers, "inputs": [given], "each": sources}
            x = scan_layers(self.decoder_layers, x, wrap, **options)
            return Output(x.reshape(rows, width, c.hidden_size), None, None)
        for i, layer in enumerate(self.decoder_layers):
            own = given | sources[i] | {"cache": cache and cache[i]}
            x, layer_cache = wrap(partial(run_layer, layer, **own))(x)
            layer_caches.append(layer_cache)
            if return_layer == i + 1:
                layer_output = x
        x = x.reshape(rows, width, c.hidden_size)
        if layer_output is not None:
            layer_output = layer_output.reshape(rows, width, c.hidden_size)
        return Output(x, tuple(layer_caches) if cache is not None else None, layer_output)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Logits over the vocabulary."""
        rows = hidden.shape[0]
        flat = constrain_rows(hidden.reshape(-1, self.config.hidden_size), rows)
        # In transformers, this bias is a buffer, not a trainable parameter.
        scores = flat @ self.embed.embedding.T + jax.lax.stop_gradient(self.logits_bias)
        return constrain_rows(scores, rows, free=True).reshape(*hidden.shape[:-1], -1)

    def _embed(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        table: nn.Embed,
        norm: LayerNorm,
    ) -> Float[Array, "N D"]:
        c = self.config
        check_adapters(self.variables.get("params", {}), len(tokens))
        x = self.embed(tokens)
        if c.scale_embedding:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        x = x + table(positions + POSITION_OFFSET)
        return norm(x.reshape(-1, c.hidden_size))

    def _wrap(self, rows: int, call: Callable) -> Callable:
        """The call of a layer whose last argument is the states of tokens, split by `rows`."""

        def call_split(*inputs: PyTree) -> PyTree:
            return call(*inputs[:-1], constrain_rows(inputs[-1], rows))

        return rematerialize(call_split, self.remat, scans=self.scan_layers)

    def _choose_kernel(self, tokens: Int[Array, "B T"], heads: int) -> Kernel:
        depth = self.config.hidden_size // heads
        return choose_kernel(*tokens.shape, depth, self.embed.embedding.dtype)

    def _check_length(self, width: int) -> None:
        # JAX would clamp a position out of range: the token would get the vector of the last one.
        if width > self.config.max_length:
            raise ValueError(
                f"{width} tokens in a row, but only {self.config.max_length} positions; "
                "shorten the texts"
            )
