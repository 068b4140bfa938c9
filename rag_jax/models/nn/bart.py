"""BART: a post-norm encoder-decoder with learned positions (Lewis et al. 2020)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.decoder import LayerCache, Output
from rag_jax.models.nn.layers import LayerNorm, check_adapters
from rag_jax.models.nn.post_norm import FFN, Attention, EncoderLayer

# The first rows of the position tables belong to no position, as in fairseq, where BART comes from.
POSITION_OFFSET = 2
_NORM_EPS = 1e-5  # PyTorch's own; BART's config.json does not state it


@dataclass(frozen=True)
class BartConfig:
    """Sizes and token ids of an encoder-decoder; the defaults are those of BART-large.

    Attributes:
        max_length: learned positions of either side, in tokens.
        scale_embedding: word vectors are read `sqrt(hidden_size)` times as large as stored.
        start_id: what every decoder row starts with.
        forced_bos_id: the token that transformers' `generate` forces behind `start_id`, or None.
        forced_eos_id: the token that it forces at the length limit, or None.
    """

    vocab_size: int = 50265
    hidden_size: int = 1024
    encoder_layers: int = 12
    decoder_layers: int = 12
    encoder_heads: int = 16
    decoder_heads: int = 16
    encoder_ffn_size: int = 4096
    decoder_ffn_size: int = 4096
    max_length: int = 1024
    scale_embedding: bool = False
    bos_id: int = 0
    pad_id: int = 1
    eos_id: int = 2
    start_id: int = 2
    forced_bos_id: int | None = None
    forced_eos_id: int | None = 2

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What a decoder row holds before its first free token."""
        return tuple(i for i in (self.start_id, self.forced_bos_id) if i is not None)

    def count_flops(self, tokens: int, targets: int) -> float:
        """Operations of a forward pass: its matrix products, those within attention left out.

        Args:
            tokens: that the encoder reads.
            targets: that the decoder reads, each of which gets logits.
        """
        d, square = self.hidden_size, self.hidden_size**2
        encoder = self.encoder_layers * (4 * square + 2 * d * self.encoder_ffn_size)
        read = self.decoder_layers * 2 * square  # the sources' keys and values
        decoder = self.decoder_layers * (6 * square + 2 * d * self.decoder_ffn_size)
        return 2.0 * (tokens * (encoder + read) + targets * (decoder + d * self.vocab_size))

    # What a cache is made of: the decoder's self-attention, under the names `DecoderConfig` has.

    @property
    def num_layers(self) -> int:
        """Layers with a cache."""
        return self.decoder_layers

    @property
    def num_kv_heads(self) -> int:
        """Key heads of such a layer."""
        return self.decoder_heads

    @property
    def head_dim(self) -> int:
        """Features of such a head."""
        return self.hidden_size // self.decoder_heads


class DecoderLayer(nn.Module):
    """Attention to the row, attention to its source, FFN: each added to its input, then normed."""

    config: BartConfig

    def setup(self):
        c = self.config
        self.attention = Attention(c.hidden_size, c.decoder_heads)
        self.attention_norm = LayerNorm(_NORM_EPS)
        self.cross_attention = Attention(c.hidden_size, c.decoder_heads)
        self.cross_attention_norm = LayerNorm(_NORM_EPS)
        self.ffn = FFN(c.decoder_ffn_size)
        self.ffn_norm = LayerNorm(_NORM_EPS)

    def __call__(self, x, mask, cache, slot, source, source_mask):
        keys, values = self.attention.read(x, mask.shape[0])
        if cache is not None:
            keys = jax.lax.dynamic_update_slice(cache[0], keys, (0, 0, 0, slot))
            values = jax.lax.dynamic_update_slice(cache[1], values, (0, 0, slot, 0))
        x = self.attention_norm(x + self.attention(x, keys, values, mask[:, None]))
        sources, length = source_mask.shape
        seen = source_mask[:, None, None, :]
        seen = jnp.broadcast_to(seen, (sources, 1, x.shape[0] // sources, length))
        x = self.cross_attention_norm(x + self.cross_attention(x, *source, seen))
        return self.ffn_norm(x + self.ffn(x)), (keys, values)


class Bart(nn.Module):
    """The model; `apply({"params": params}, input_tokens, decoder_tokens)` gives logits.

    `hidden` and `logits` are those of `Decoder`, so all of `rag_jax.decoding` runs on either: where
    a decoder's row stands behind a prefix, a row here attends to a source.
    """

    config: BartConfig

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

    def __call__(
        self,
        input_tokens: Int[Array, "B S"],
        decoder_tokens: Int[Array, "B T"],
        mask: Bool[Array, "B S"] | Int[Array, "B S"] | None = None,
        decoder_mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of every decoder position.

        Positions count the columns from 0 whatever the masks, as in BART itself.

        Args:
            input_tokens: what the encoder reads.
            decoder_tokens: what the decoder has so far, `start_id` first.
            mask: True (or non-zero) on the input's real tokens; None where nothing is padding.
            decoder_mask: the same for the decoder's.
        """
        mask = jnp.ones(input_tokens.shape, bool) if mask is None else mask.astype(bool)
        source = self.read_source(self.encode(input_tokens, mask))
        hidden = self.hidden(decoder_tokens, mask=decoder_mask, prefix=source, prefix_mask=mask)
        return self.logits(hidden.hidden)

    def encode(
        self, tokens: Int[Array, "B S"], mask: Bool[Array, "B S"] | Int[Array, "B S"] | None = None
    ) -> Float[Array, "B S D"]:
        """The encoder's hidden states after its last layer.

        Raises:
            ValueError: more columns than there are learned positions.
        """
        rows, width = tokens.shape
        self._check_length(width)
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        x = self._embed(tokens, jnp.arange(width)[None], self.encoder_position, self.encoder_norm)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return x.reshape(rows, width, self.config.hidden_size)

    def read_source(self, encoded: Float[Array, "P L D"]) -> tuple[LayerCache, ...]:
        """What `hidden` takes as its prefix: each layer's keys and values of encoded sources."""
        flat = encoded.reshape(-1, self.config.hidden_size)
        return tuple(
            layer.cross_attention.read(flat, encoded.shape[0]) for layer in self.decoder_layers
        )

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        prefix: Sequence[LayerCache],
        prefix_mask: Bool[Array, "P L"],
        mask: Bool[Array, "B T"] | Bool[Array, "B T S"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        cache: Sequence[LayerCache] | None = None,
        slot: Int[Array, ""] | int = 0,
        length: int | None = None,
        return_layer: int | None = None,
    ) -> Output:
        """Runs the decoder over a chunk of tokens.

        Args:
            tokens: one chunk for each row.
            prefix: the layers' keys and values of `P` sources, each read by `B / P` consecutive
                rows: what `read_source` returned.
            prefix_mask: True on the sources' real tokens.
            mask: without a cache, `[B, T]`, True (or non-zero) on real tokens (causality is added
                here). With one, `[B, T, S]`, True where a token may look among the cache's slots.
            positions: which learned position each token has; by default its column. A cache has no
                columns, so with one they must be given.
            cache: the layers' keys and values; the chunk is written at `slot` and returned.
            slot: where the chunk starts on the cache's slot axis, the same for every row.
            length: how many of the slots one text may take, where several lie in them; by default
                all.
            return_layer: number of the layer whose output is wanted as well: 0 is the embedding,
                `decoder_layers` the last layer's output, which `hidden` is too. None for none.

        Raises:
            ValueError: texts of more slots than there are learned positions.
        """
        c, (rows, width) = self.config, tokens.shape
        if cache is None:
            real = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
            mask = real[:, None, :] & jnp.tril(jnp.ones((1, width, width), bool))
            if positions is None:
                positions = jnp.arange(width)[None]
        self._check_length(mask.shape[-1] if length is None else length)
        x = self._embed(tokens, positions, self.decoder_position, self.decoder_norm)
        layer_output, written = (x if return_layer == 0 else None), []
        for i, layer in enumerate(self.decoder_layers):
            x, layer_cache = layer(x, mask, cache and cache[i], slot, prefix[i], prefix_mask)
            written.append(layer_cache)
            if return_layer == i + 1:
                layer_output = x
        x = x.reshape(rows, width, c.hidden_size)
        if layer_output is not None:
            layer_output = layer_output.reshape(rows, width, c.hidden_size)
        return Output(x, tuple(written) if cache is not None else None, layer_output)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Scores over the vocabulary, only for the hidden states given."""
        scores = hidden.reshape(-1, self.config.hidden_size) @ self.embed.embedding.T
        # transformers keeps this bias as a buffer: it is read and never trained.
        scores = scores + jax.lax.stop_gradient(self.logits_bias)
        return scores.reshape(*hidden.shape[:-1], -1)

    def _embed(self, tokens, positions, table, norm) -> Float[Array, "N D"]:
        c = self.config
        check_adapters(self.variables.get("params", {}), len(tokens))
        x = self.embed(tokens)
        if c.scale_embedding:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        x = x + table(positions + POSITION_OFFSET)
        return norm(x.reshape(-1, c.hidden_size))

    def _check_length(self, width: int) -> None:
        # JAX would clamp a position that is out of range: the token would get another one's vector.
        if width > self.config.max_length:
            raise ValueError(
                f"{width} tokens in a row, but only {self.config.max_length} positions"
            )
