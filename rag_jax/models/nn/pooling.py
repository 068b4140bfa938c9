"""From the states of a text's tokens to its embedding, as sentence-transformers has it.

Pooling follows the modules of a sentence-transformers folder (Reimers and Gurevych 2019,
section 3): what is taken of the tokens' states, then dense layers and scalings, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.runtime.arguments import checked

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": lambda x: jax.nn.gelu(x, approximate=False),
    "SiLU": jax.nn.silu,
    "Sigmoid": jax.nn.sigmoid,
}


@dataclass(frozen=True)
class Dense:
    """A dense layer over an embedding; its kernel and bias are parameters of the encoder.

    Attributes:
        name: of its parameters in the encoder's tree.
        inputs: number of features that it reads.
        outputs: number of features that it gives.
        bias: whether a bias is added.
        activation: one of `ACTIVATIONS`.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Pooling:
    """How the states of a text's tokens become its embedding.

    Attributes:
        modes: what is taken of the states; several are joined, in this order.
        include_prompt: whether the tokens of a prompt before the text count.
        steps: dense layers, and "normalize" for a scaling to length 1.
        dimensions: number of features that are kept, for an encoder trained so that the first ones
            serve alone (Kusupati et al. 2022, Matryoshka); None for all. An embedding whose last
            step is a scaling is scaled to length 1 again.
    """

    modes: tuple[Mode, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Dense | Literal["normalize"], ...] = ("normalize",)
    dimensions: int | None = None

    @property
    def normalized(self) -> bool:
        """Whether embeddings have length 1."""
        return bool(self.steps) and self.steps[-1] == "normalize"

    @property
    def dense(self) -> tuple[Dense, ...]:
        """The dense layers."""
        return tuple(step for step in self.steps if isinstance(step, Dense))

    def count_features(self, hidden_size: int) -> int:
        """Number of features of an embedding, by those of a token's state."""
        last = self.dense[-1].outputs if self.dense else hidden_size * len(self.modes)
        return last if self.dimensions is None else self.dimensions


MEAN = Pooling()


@checked
def pool_states(
    hidden: Float[Array, "B T D"],
    mask: Bool[Array, "B T"] | Int[Array, "B T"],
    pooling: Pooling,
    params: PyTree,
    *,
    skipped: int | Int[Array, ""] = 0,
) -> Float[Array, "B E"]:
    """Embeddings of texts by the states of their tokens, in float32.

    Padding, where `mask` is False or 0, is on the right. A row of padding has zeros.

    Args:
        params: the encoder's parameters, with those of the dense layers.
        skipped: number of tokens of the prompt, with what stands before it, that do not count.
    """
    states = hidden.astype(jnp.float32)
    counted = mask.astype(bool) & (jnp.arange(mask.shape[1])[None] >= skipped)
    x = jnp.concatenate([_take(mode, states, counted, mask) for mode in pooling.modes], axis=-1)
    x = run_steps(x, pooling.steps, params)
    if pooling.dimensions is not None:
        x = x[:, : pooling.dimensions]
        x = _scale(x) if pooling.normalized else x
    return x


def run_steps(
    x: Float[Array, "B I"], steps: Sequence[Dense | Literal["normalize"]], params: PyTree
) -> Float[Array, "B E"]:
    """Runs dense layers and scalings to length 1, in their order.

    Args:
        params: the encoder's parameters, with those of the dense layers.
    """
    for step in steps:
        x = _scale(x) if step == "normalize" else _run_dense(step, params[step.name], x)
    return x


def _take(
    mode: Mode,
    states: Float[Array, "B T D"],
    counted: Bool[Array, "B T"],
    mask: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Float[Array, "B D"]:
    if mode == "max":
        best = jnp.max(states, axis=1, initial=-jnp.inf, where=counted[..., None])
        return jnp.where(counted.any(axis=1)[:, None], best, 0)
    if mode in ("cls", "lasttoken"):
        first = jnp.argmax(counted, axis=1)
        last = jnp.maximum(jnp.sum(mask.astype(jnp.int32), axis=1) - 1, 0)
        place = first if mode == "cls" else last
        return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]
    weights = counted.astype(jnp.float32)
    if mode == "weightedmean":  # Muennighoff 2022, SGPT, section 3.1: by the token's position
        weights = weights * jnp.arange(1, mask.shape[1] + 1, dtype=jnp.float32)[None]
    total = jnp.sum(states * weights[..., None], axis=1)
    count = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
    return total / (jnp.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


def _scale(x: Float[Array, "B E"]) -> Float[Array, "B E"]:
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _run_dense(step: Dense, params: PyTree, x: Float[Array, "B I"]) -> Float[Array, "B O"]:
    # Highest precision: TPUs would round both factors to bfloat16.
    kernel = params["kernel"].astype(jnp.float32)
    y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    y = y + params["bias"].astype(jnp.float32)[None] if step.bias else y
    return ACTIVATIONS[step.activation](y)
