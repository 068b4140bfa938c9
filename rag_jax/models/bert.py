"""A BERT encoder: post-norm, learned positions, bidirectional attention (Devlin et al. 2019)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.layers import attend


@dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder; `max_length` is its number of learned positions, in tokens."""

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_types: int
    norm_eps: float
    max_length: int


class BiasedLinear(nn.Module):
    """`x @ kernel + bias`."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))[None]


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


class Embeddings(nn.Module):
    """Word, position and type vectors, added and normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], types: Int[Array, "B T"]) -> Float[Array, "N D"]:
        c = self.config
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word")(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        x = x + nn.Embed(c.max_length, c.hidden_size, name="position")(positions)
        x = x + nn.Embed(c.num_types, c.hidden_size, name="type")(types)
        return LayerNorm(c.norm_eps, name="norm")(x.reshape(-1, c.hidden_size))


class Attention(nn.Module):
    """Every token looks at every real token of its row."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], mask: Bool[Array, "B T"]) -> Float[Array, "N D"]:
        c, (rows, width) = self.config, mask.shape
        head_dim = c.hidden_size // c.num_heads

        def project(name):
            y = BiasedLinear(c.hidden_size, name=name)(x)
            return y.reshape(rows, width, c.num_heads, head_dim).swapaxes(1, 2)

        query, keys, values = project("query"), project("key"), project("value")
        seen = jnp.broadcast_to(mask[:, None, None, :], (rows, 1, width, width))
        y = attend(query, keys.swapaxes(2, 3), values, seen).swapaxes(1, 2)
        return BiasedLinear(c.hidden_size, name="output")(y.reshape(rows * width, c.hidden_size))


class FFN(nn.Module):
    """`down(gelu(up(x)))` with the exact, erf-based GELU (Hendrycks and Gimpel 2016)."""

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        y = jax.nn.gelu(BiasedLinear(self.size, name="up")(x), approximate=False)
        return BiasedLinear(x.shape[-1], name="down")(y)


class Layer(nn.Module):
    """Attention and FFN, each added to its input and then normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], mask: Bool[Array, "B T"]) -> Float[Array, "N D"]:
        c = self.config
        y = Attention(c, name="attention")(x, mask)
        x = LayerNorm(c.norm_eps, name="attention_norm")(x + y)
        y = FFN(c.ffn_size, name="ffn")(x)
        return LayerNorm(c.norm_eps, name="ffn_norm")(x + y)


class Bert(nn.Module):
    """The encoder; `apply({"params": params}, tokens, mask)` gives hidden states `[B, T, D]`."""

    config: BertConfig

    def setup(self):
        self.embed = Embeddings(self.config)
        self.layers = [Layer(self.config) for _ in range(self.config.num_layers)]

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        types: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last layer.

        Positions count the columns from 0 whatever the mask, as in BERT itself: pad on the right.

        Args:
            tokens: at most `max_length` columns.
            mask: True (or non-zero) on real tokens; None where nothing is padding.
            types: 0 for the first text of a pair and 1 for the second; None for all 0.

        Raises:
            ValueError: more columns than there are learned positions.
        """
        rows, width = tokens.shape
        if width > self.config.max_length:
            raise ValueError(
                f"{width} tokens in a row, but only {self.config.max_length} positions"
            )
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        x = self.embed(tokens, jnp.zeros_like(tokens) if types is None else types)
        for layer in self.layers:
            x = layer(x, mask)
        return x.reshape(rows, width, self.config.hidden_size)
