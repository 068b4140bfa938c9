"""BERT and its kin: post-norm, learned positions, bidirectional attention (Devlin et al. 2019)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.layers import LayerNorm, Linear, check_adapters, check_vocabulary
from rag_jax.models.nn.pooling import MEAN, Pooling
from rag_jax.models.nn.post_norm import EncoderLayer
from rag_jax.models.nn.stack import run_layer, run_stacked
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import constrain_rows


@dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder and the way in which it embeds a text.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: features of a hidden state (`D`).
        ffn_size: features of the FFN's hidden layer.
        num_types: number of token types: text 0 and text 1 of a pair; 0 for none.
        norm_eps: constant under the root of every norm.
        max_length: number of learned positions, in tokens.
        family: "bert", "roberta", "xlm-roberta", "mpnet" or "distilbert", after which files are
            named.
        position_offset: rows of the table of positions before that of the first token.
        position_buckets: buckets of distances that have a learned term in the attention's scores,
            as MPNet has them; 0 for none.
        dpr_role: "question" or "context" for one of DPR's two encoders, which embed a text as its
            [CLS] state (Karpukhin et al. 2020, section 3.1); None for a plain BERT, which embeds
            a text by its module's `pooling`.
        projection_size: features of DPR's projection of the [CLS] state; None without projection.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_types: int
    norm_eps: float
    max_length: int
    family: str = "bert"
    position_offset: int = 0
    position_buckets: int = 0
    dpr_role: str | None = None
    projection_size: int | None = None

    @property
    def reads_types(self) -> bool:
        """Whether the second of two texts has a type of its own: in BERT, not in its followers."""
        return self.family == "bert" and self.num_types == 2 and self.dpr_role is None

    def count_flops(self, tokens: int) -> float:
        """Floating-point operations of a forward pass: the matrix products with the weights.

        The products of attention (queries with keys, weights with values) are not counted.
        """
        layer = self.hidden_size * (4 * self.hidden_size + 2 * self.ffn_size)
        return 2.0 * tokens * self.num_layers * layer


class Embeddings(nn.Module):
    """Embedding layer: the sum of word, position and type vectors, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B T"], types: Int[Array, "B T"]) -> Float[Array, "N D"]:
        c = self.config
        x = nn.Embed(c.vocab_size, c.hidden_size, name="word")(tokens)
        positions = jnp.arange(tokens.shape[1])[None] + c.position_offset  # [1, T]
        rows = c.max_length + c.position_offset
        x = x + nn.Embed(rows, c.hidden_size, name="position")(positions)
        if c.num_types:
            x = x + nn.Embed(c.num_types, c.hidden_size, name="type")(types)
        return LayerNorm(c.norm_eps, name="norm")(x.reshape(-1, c.hidden_size))  # [B * T, D]


class Bert(nn.Module):
    """BERT encoder; `apply({"params": params}, tokens, mask)` gives hidden states `[B, T, D]`.

    The parameters of the layers are `layers_0`, `layers_1`, ..., or stacked in one tree `layers`
    (`layers.stack_layers`), over which the encoder loops.

    Attributes:
        pooling: how `retrieval.encode.embed` makes an embedding of the states; None, where no file
            says so, for their mean scaled to length 1. DPR's encoders have their own way.
    """

    config: BertConfig
    pooling: Pooling | None = None

    @property
    def embedding_size(self) -> int:
        """Number of features of a text's embedding (`E`)."""
        c = self.config
        if c.dpr_role is not None:
            return c.projection_size or c.hidden_size
        return (self.pooling or MEAN).count_features(c.hidden_size)

    def setup(self):
        c = self.config
        self.embed = Embeddings(c)
        self.layers = [
            EncoderLayer(c.num_heads, c.ffn_size, c.norm_eps) for _ in range(c.num_layers)
        ]
        if c.position_buckets:
            self.near = nn.Embed(c.position_buckets, c.num_heads)
        if c.projection_size:
            self.projection = Linear(c.projection_size, use_bias=True)

    @checked
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"] | None = None,
        types: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last layer.

        A token's position is its column, whatever the mask, as in the original BERT. Padding
        therefore belongs on the right.

        Args:
            mask: token mask, boolean or 0 and 1; None if there is no padding.
            types: 0 for the first text of a pair and 1 for the second; None for all 0.

        Raises:
            TypeError: `tokens`, `mask` or `types` is no array of its kind.
            ValueError: the arrays differ in shape, an id is not in the vocabulary (outside `jit`),
                `T` exceeds `max_length`, or the adapters do not divide the rows.
        """
        rows, width = tokens.shape
        check_vocabulary(tokens, self.config.vocab_size)
        if width > self.config.max_length:
            raise ValueError(
                f"{width} tokens in a row, but only {self.config.max_length} positions; "
                "shorten the texts"
            )
        check_adapters(self.variables.get("params", {}), rows)
        token_mask = jnp.ones(tokens.shape, bool) if mask is None else mask.astype(bool)
        x = self.embed(tokens, jnp.zeros_like(tokens) if types is None else types)
        bias = None
        if self.config.position_buckets:
            buckets = find_buckets(width, self.config.position_buckets)
            bias = jnp.transpose(self.near(buckets), (2, 0, 1))[None]  # [1, H, T, T]
        x, given = constrain_rows(x, rows), {"attention_mask": token_mask[:, None], "bias": bias}
        if (stacked := self.variables.get("params", {}).get("layers")) is not None:
            x = run_stacked(self.layers[0], stacked, x, lambda x: constrain_rows(x, rows), **given)
        else:
            for layer in self.layers:
                x = constrain_rows(run_layer(layer, x, **given), rows)
        if self.is_initializing():
            self.project(x)  # `init` must create the projection's parameters too
        return x.reshape(rows, width, self.config.hidden_size)

    def project(self, states: Float[Array, "B D"]) -> Float[Array, "B E"]:
        """Text embeddings from [CLS] states: DPR's projection of the states, if there is one."""
        return self.projection(states) if self.config.projection_size else states


def find_buckets(width: int, count: int, *, most: int = 128) -> Int[np.ndarray, "T T"]:
    """The bucket of each distance of a key from a query (Raffel et al. 2020, section 2.1).

    Half of the buckets are of keys after the query. Of each half, one half has a distance each, and
    the others grow until the distance `most`.
    """
    distance = np.arange(width)[None] - np.arange(width)[:, None]
    half, far = count // 2, np.abs(distance)
    exact = half // 2
    # In float32, as in the models' training: a bucket's border moves with the rounding.
    grown = np.log(np.maximum(far, 1).astype(np.float32) / exact) / np.log(most / exact)
    large = np.minimum(exact + (grown * (half - exact)).astype(np.int64), half - 1)
    return half * (distance > 0) + np.where(far < exact, far, large)
