"""The head over masked tokens, and SPLADE's pooling of its logits (Formal et al. 2021)."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PyTree

from rag_jax.models.nn.layers import LayerNorm, Linear

# Number of tokens whose logits are in memory together: with BERT's vocabulary 62 MB.
_CHUNK = 512


class MaskedHead(nn.Module):
    """What a masked language model does to a token's state before it is compared with words.

    Attributes:
        norm_eps: constant under the root of the norm.
        use_bias: whether the dense layer and the norm have biases.
    """

    norm_eps: float
    use_bias: bool = True

    @nn.compact
    def __call__(self, states: Float[Array, "N D"]) -> Float[Array, "N D"]:
        y = Linear(states.shape[-1], use_bias=self.use_bias, name="dense")(states)
        y = jax.nn.gelu(y, approximate=False)
        return LayerNorm(self.norm_eps, use_bias=self.use_bias, name="norm")(y)


@dataclass(frozen=True)
class Splade:
    """How the logits of a text's tokens become the weights of the vocabulary's words.

    Attributes:
        strategy: "max" (Formal et al. 2021, SPLADE v2) or "sum" over the text's tokens.
        activation: "relu" for log(1 + relu(x)), "log1p_relu" for log(1 + log(1 + relu(x))).
    """

    strategy: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"


def pool_words(
    head: MaskedHead,
    params: PyTree,
    hidden: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    table: Float[Array, "V D"],
    pooling: Splade,
) -> Float[Array, "B V"]:
    """Weights of the vocabulary's words for texts, by the states of their tokens, in float32.

    The logits of a few hundred tokens exist at a time.

    Args:
        params: of the head: those of the module, `bias` `[V]`, and `table` `[V, D]` if the head has
            one of its own.
        table: the word embeddings, whose products with the head's output are the logits.
    """
    rows, width, features = hidden.shape
    states = head.apply({"params": params}, hidden.reshape(-1, features))
    table = params.get("table", table)
    columns = min(width, max(1, _CHUNK // rows))
    count = -(-width // columns)
    padding = count * columns - width
    # [B * T, D] -> [chunks, B, columns, D]
    states = jnp.pad(states.reshape(hidden.shape), ((0, 0), (0, padding), (0, 0)))
    states = states.reshape(rows, count, columns, features).swapaxes(0, 1)
    masks = jnp.pad(mask, ((0, 0), (0, padding))).reshape(rows, count, columns).swapaxes(0, 1)
    bias = params["bias"].astype(jnp.float32)[None, None]

    def add(pooled: Float[Array, "B V"], chunk: tuple[Array, Array]) -> tuple[Array, None]:
        logits = (chunk[0] @ table.T).astype(jnp.float32) + bias  # [B, columns, V]
        logits = jnp.where(chunk[1][..., None], jax.nn.relu(logits), 0)
        if pooling.strategy == "max":
            return jnp.maximum(pooled, logits.max(axis=1)), None
        return pooled + _activate(logits, pooling).sum(axis=1), None

    pooled = jax.lax.scan(add, jnp.zeros((rows, len(table)), jnp.float32), (states, masks))[0]
    # The activation rises, so that of the largest logit is the largest.
    return _activate(pooled, pooling) if pooling.strategy == "max" else pooled


def _activate(x: Float[Array, "..."], pooling: Splade) -> Float[Array, "..."]:
    x = jnp.log1p(x)
    return jnp.log1p(x) if pooling.activation == "log1p_relu" else x
