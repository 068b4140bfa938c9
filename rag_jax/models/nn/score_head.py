"""The heads that give a question and a passage, read together, a score."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from rag_jax.models.nn.layers import LayerNorm

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


@dataclass(frozen=True)
class ScoreHead:
    """How the states of a pair's tokens become its score.

    Attributes:
        pools: the state of the first token, that of the last one, or the mean of all.
        activation: after the dense layer, which is there if this is not None.
        norm_eps: constant under the root of the norm after the activation; None without a norm.
    """

    pools: Literal["first", "last", "mean"]
    activation: Literal["gelu", "relu", "tanh"] | None = None
    norm_eps: float | None = None


def score_states(
    head: ScoreHead,
    params: PyTree,
    hidden: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B"]:
    """Scores of pairs by the states of their tokens, in float32.

    Args:
        params: `out`, a kernel `[D, 1]` and maybe a bias `[1]`, and what `head` has before it:
            `dense`, a kernel `[D, D]` and maybe a bias, and `norm`.
        mask: False on padding, which is on the right.
    """
    if head.pools == "mean":
        weights = mask.astype(jnp.float32)[..., None]
        x = (hidden.astype(jnp.float32) * weights).sum(axis=1) / weights.sum(axis=1)
        x = x.astype(hidden.dtype)
    else:
        last = mask.sum(axis=1) - 1 if head.pools == "last" else jnp.zeros(len(mask), jnp.int32)
        x = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    if head.activation is not None:
        x = _ACTIVATIONS[head.activation](_project(params["dense"], x))
    if head.norm_eps is not None:
        x = LayerNorm(head.norm_eps, use_bias=False).apply({"params": params["norm"]}, x)
    return _project(params["out"], x)[:, 0].astype(jnp.float32)


def _project(params: PyTree, x: Float[Array, "B D"]) -> Float[Array, "B O"]:
    y = x @ params["kernel"]
    return y + params["bias"][None] if "bias" in params else y
