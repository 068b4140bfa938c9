"""What BERT and BART share: attention with biases, the GELU FFN, the post-norm encoder layer."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from rag_jax.models.nn.layers import LayerNorm, Linear, attend


class Attention(nn.Module):
    """Multi-head attention with biases (Vaswani et al. 2017, section 3.2.2).

    Keys and values are made apart from queries: they may be the row's own, come out of a cache, or
    belong to a source that several rows read.
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
        """Keys and values of `P = rows` rows of tokens, laid out as `attend` wants them."""
        return self._split(self.key(x), rows).swapaxes(2, 3), self._split(self.value(x), rows)

    def __call__(
        self,
        x: Float[Array, "N D"],
        keys: Float[Array, "P H d S"],
        values: Float[Array, "P H S d"],
        mask: Bool[Array, "P 1 M S"],
    ) -> Float[Array, "N D"]:
        """Attends from `N = P * M` tokens; consecutive rows that read the same keys are one row."""
        query = self._split(self.query(x), keys.shape[0])
        return self.output(attend(query, keys, values, mask).swapaxes(1, 2).reshape(x.shape))

    def _split(self, y: Float[Array, "N D"], rows: int) -> Float[Array, "P H T d"]:
        width = y.shape[0] // rows
        return y.reshape(rows, width, self.num_heads, -1).swapaxes(1, 2)


class FFN(nn.Module):
    """`down(gelu(up(x)))` with the exact, erf-based GELU (Hendrycks and Gimpel 2016)."""

    size: int

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        y = jax.nn.gelu(Linear(self.size, use_bias=True, name="up")(x), approximate=False)
        return Linear(x.shape[-1], use_bias=True, name="down")(y)


class EncoderLayer(nn.Module):
    """Attention and FFN, each added to its input and then normalised.

    Every token looks at every real token of its row.
    """

    num_heads: int
    ffn_size: int
    norm_eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], mask: Bool[Array, "B T"]) -> Float[Array, "N D"]:
        rows, width = mask.shape
        seen = jnp.broadcast_to(mask[:, None, None, :], (rows, 1, width, width))
        attention = Attention(x.shape[-1], self.num_heads, name="attention")
        y = attention(x, *attention.read(x, rows), seen)
        x = LayerNorm(self.norm_eps, name="attention_norm")(x + y)
        y = FFN(self.ffn_size, name="ffn")(x)
        return LayerNorm(self.norm_eps, name="ffn_norm")(x + y)
