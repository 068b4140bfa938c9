"""The likelihood of given texts after a cache; for use inside `jax.jit`."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, append, fork
from rag_jax.losses import hidden_logprobs
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.arguments import checked


@checked
def score_text(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    at: Int[Array, "B P"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"] | Bool[Array, "B P"],
) -> Float[Array, "B"]:
    """`log p(targets | cache, tokens)` in nats, the weighted sum over a row's targets.

    Args:
        cache: what the rows have read; the cache itself stays unchanged.
        tokens: read after the cache; `mask` is False on their padding.
        at: positions in `tokens`; the state at `at[b, p]` predicts `targets[b, p]`.
        weights: 0 on padding of the targets.
    """
    cache = fork(model, cache, 1)  # a longer cache would be a copy of it
    output, _ = append(model, params, cache, tokens, mask)
    return (score_at(model, params, output.hidden, at, targets) * weights).sum(axis=-1)


@checked
def score_continuation(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    given: int = 1,
) -> Float[Array, "B"]:
    """`log p(tokens[given:] | cache, tokens[:given])` in nats, the sum over a row's tokens.

    Args:
        tokens: padded on the right, where `mask` is False.
        given: number of leading tokens that are read but not scored, such as a cue. At least 1: the
            cache does not hold the logits of the first token.

    Raises:
        ValueError: `given` is below 1, or leaves nothing to score.
    """
    rows, width = tokens.shape
    if not 1 <= given < width:
        raise ValueError(f"given is {given}: it must be from 1 to {width - 1}, below the tokens")
    at = jnp.tile(jnp.arange(given - 1, width - 1)[None], (rows, 1))
    return score_text(model, params, cache, tokens, mask, at, tokens[:, given:], mask[:, given:])


def score_at(
    model: Decoder | Bart,
    params: PyTree,
    hidden: Float[Array, "B T D"],
    at: Int[Array, "B P"],
    targets: Int[Array, "B P"],
) -> Float[Array, "B P"]:
    """Log-probabilities in nats of target tokens; the state at `at[b, p]` predicts `targets[b, p]`.

    Logits are computed at the `P` positions alone.
    """
    picked = jnp.take_along_axis(hidden, at[:, :, None], axis=1)  # [B, T, D] -> [B, P, D]
    to_logits = partial(model.apply, {"params": params}, method="logits")
    return hidden_logprobs(to_logits, picked, targets, vocab_size=model.config.vocab_size)
