"""Layers of BERT and BART: attention with biases, GELU FFN, post-norm encoder layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from rag_jax.models.nn.attention import SegmentMask
from rag_jax.models.nn.layers import LayerNorm, Linear, attend


class Attention(nn.Module):
    """Multi-head attention with biases (Vaswani et al. 2017, section 3.2.2).

    Keys and values are computed separately, by `read`: from the same tokens as the queries
    (self-attention, with or without a cache), or from a source that several rows attend to
    (cross-attention).
    """

    size: int
    num_heads: int

    def setup(self):
        self.query = Linear(self.size, use_bias=True)
        self.key = Linear(self.size, use_bias=True)
        self.value = Linear(self.size, use_bias=True)
        self.output = Linear(self.size, use_bias=True)

    def read(
        self, x: Float[Array, "N D"], rows: int
    ) -> tuple[Float[Array, "P H d S"], Float[Array, "P H S d"]]:
        """Keys and values of `P = rows` rows of `S` tokens, in the layout of `attend`."""
        return self._split(self.key(x), rows).swapaxes(2, 3), self._split(self.value(x), rows)

    def __call__(
        self,
        x: Float[Array, "N D"],
        *,
        keys: Float[Array, "P H d S"],
        values: Float[Array, "P H S d"],
        attention_mask: Bool[Array, "P 1 M S"] | SegmentMask,
        bias: Float[Array, "1 H M S"] | None = None,
    ) -> Float[Array, "N D"]:
        """Attends from `N = P * M` tokens.

        Args:
            x: inputs of the queries. Consecutive rows that attend to the same keys are one row of
                `M` queries.
            bias: as for `attend`.
        """
        query = self._split(self.query(x), keys.shape[0])
        y = attend(query, keys, values, attention_mask, bias=bias)
        return self.output(y.swapaxes(1, 2).reshape(x.shape))  # [P, H, M, d] -> [P * M, H * d]

    def _split(self, y: Float[Array, "N D"], rows: int) -> Float[Array, "P H T d"]:
        # [P * T, H * d] -> [P, H, T, d]
        return y.reshape(rows, y.shape[0] // rows, self.num_heads, -1).swapaxes(1, 2)


class FFN(nn.Module):
    """FFN `down(gelu(up(x)))` with the exact, erf-based GELU (Hendrycks and Gimpel 2016)."""

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        y = jax.nn.gelu(Linear(self.size, use_bias=True, name="up")(x), approximate=False)
        return Linear(x.shape[-1], use_bias=True, name="down")(y)


class EncoderLayer(nn.Module):
    """Post-norm Transformer layer: `x = norm(x + attention(x))`, then `norm(x + ffn(x))`.

    Attention is bidirectional: of its row's tokens, a token attends to those that the mask allows.
    """

    num_heads: int
    ffn_size: int
    norm_eps: float

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N D"],
        *,
        attention_mask: Bool[Array, "B 1 T"] | Bool[Array, "B T T"] | SegmentMask,
        bias: Float[Array, "1 H T T"] | None = None,
    ) -> Float[Array, "N D"]:
        if isinstance(attention_mask, SegmentMask):
            rows = len(attention_mask.segments)
        else:
            rows, _, width = attention_mask.shape
            # [B, T, T] -> [B, 1, T, T]
            attention_mask = jnp.broadcast_to(attention_mask[:, None], (rows, 1, width, width))
        attention = Attention(x.shape[-1], self.num_heads, name="attention")
        keys, values = attention.read(x, rows)
        read = {"keys": keys, "values": values, "attention_mask": attention_mask}
        y = attention(x, **read, bias=bias)
        x = LayerNorm(self.norm_eps, name="attention_norm")(x + y)
        y = FFN(self.ffn_size, name="ffn")(x)
        return LayerNorm(self.norm_eps, name="ffn_norm")(x + y)
