"""ModernBERT (Warner et al. 2024): a pre-norm encoder with rotary positions and local attention."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.layers import LayerNorm, Linear, attend, check_adapters, check_vocabulary
from rag_jax.models.nn.pooling import MEAN, Pooling
from rag_jax.models.nn.rope import Angles, rotary_angles, rotate
from rag_jax.models.nn.stack import run_layer
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import constrain_rows


@dataclass(frozen=True)
class ModernBertConfig:
    """Sizes of a ModernBERT encoder.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: features of a hidden state (`D`).
        ffn_size: features of the FFN's hidden layer.
        is_local: for each layer whether its tokens attend only to near ones.
        window: largest distance of two tokens that attend to each other in a local layer.
        global_theta: base of the rotary frequencies in the other layers.
        local_theta: base of the rotary frequencies in local layers.
        norm_eps: constant under the root of every norm.
        max_length: number of tokens that it was trained on at once.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    is_local: tuple[bool, ...]
    window: int
    global_theta: float
    local_theta: float
    norm_eps: float
    max_length: int

    # DPR's roles are of BERT alone.
    dpr_role = None

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.is_local)

    def count_flops(self, tokens: int) -> float:
        """Floating-point operations of a forward pass: the matrix products with the weights.

        The products of attention (queries with keys, weights with values) are not counted.
        """
        layer = self.hidden_size * (4 * self.hidden_size + 3 * self.ffn_size)
        return 2.0 * tokens * self.num_layers * layer


class Layer(nn.Module):
    """Pre-norm layer with a GeGLU: `x + attention(norm(x))`, then `x + ffn(norm(x))`.

    The first layer of a model has no norm before its attention: the embedding's is there already.
    """

    config: ModernBertConfig
    is_first: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "N D"], *, angles: Angles, mask: Bool[Array, "B 1 T T"]
    ) -> Float[Array, "N D"]:
        c, rows = self.config, len(mask)
        y = x if self.is_first else LayerNorm(c.norm_eps, use_bias=False, name="attention_norm")(x)
        x = x + self._attend(y, angles, mask)
        y = LayerNorm(c.norm_eps, use_bias=False, name="ffn_norm")(x)
        gate = jax.nn.gelu(Linear(c.ffn_size, name="gate")(y), approximate=False)
        y = gate * Linear(c.ffn_size, name="up")(y)
        return constrain_rows(x + Linear(c.hidden_size, name="down")(y), rows)

    def _attend(
        self, x: Float[Array, "N D"], angles: Angles, mask: Bool[Array, "B 1 T T"]
    ) -> Float[Array, "N D"]:
        c, rows = self.config, len(mask)

        def project(name: str) -> Float[Array, "B H T d"]:
            y = Linear(c.hidden_size, name=name)(x)
            # [B * T, H * d] -> [B, H, T, d]
            return y.reshape(rows, -1, c.num_heads, c.hidden_size // c.num_heads).swapaxes(1, 2)

        query, keys = (rotate(project(name), angles) for name in ("query", "key"))
        y = attend(query, keys.swapaxes(2, 3), project("value"), mask)
        return Linear(c.hidden_size, name="output")(y.swapaxes(1, 2).reshape(x.shape))


class ModernBert(nn.Module):
    """ModernBERT encoder; `apply({"params": params}, tokens, mask)` gives states `[B, T, D]`.

    Attributes:
        pooling: as for `Bert`.
    """

    config: ModernBertConfig
    pooling: Pooling | None = None

    @property
    def embedding_size(self) -> int:
        """Number of features of a text's embedding (`E`)."""
        return (self.pooling or MEAN).count_features(self.config.hidden_size)

    def setup(self):
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        self.embed_norm = LayerNorm(c.norm_eps, use_bias=False)
        self.layers = [Layer(c, i == 0) for i in range(c.num_layers)]
        self.final_norm = LayerNorm(c.norm_eps, use_bias=False)

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last norm. A token's position is its column, whatever the mask.

        Args:
            mask: token mask, boolean or 0 and 1; None if there is no padding.

        Raises:
            TypeError: `tokens` or `mask` is no array of its kind.
            ValueError: the arrays differ in shape, an id is not in the vocabulary (outside `jit`),
                or the adapters do not divide the rows.
        """
        c, (rows, width) = self.config, tokens.shape
        check_vocabulary(tokens, c.vocab_size)
        check_adapters(self.variables.get("params", {}), rows)
        token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        places = jnp.arange(width)
        near = jnp.abs(places[:, None] - places[None]) <= c.window  # [T, T]
        everywhere = jnp.broadcast_to(token_mask[:, None, None], (rows, 1, width, width))
        masks = {False: everywhere, True: everywhere & near[None, None]}
        size = c.hidden_size // c.num_heads
        bases = {False: c.global_theta, True: c.local_theta}
        angles = {
            local: rotary_angles(places[None], rotary_dim=size, theta=theta)
            for local, theta in bases.items()
        }
        x = self.embed_norm(self.embed(tokens).reshape(-1, c.hidden_size))  # [B * T, D]
        x = constrain_rows(x, rows)
        for layer, local in zip(self.layers, c.is_local, strict=True):
            x = run_layer(layer, x, angles=angles[local], mask=masks[local])
        return self.final_norm(x).reshape(rows, width, c.hidden_size)
