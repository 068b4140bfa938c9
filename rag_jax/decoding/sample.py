"""The loop that writes one token after the other, greedily or drawn at random, over a cache."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rag_jax.decoding.cache import Cache, grow, write
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED


class Sampling(NamedTuple):
    """How the next token is drawn; hashable, so a compiled loop can close over it.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens that hold this much probability
            (Holtzman et al. 2020).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


class Decoded(NamedTuple):
    """What a loop wrote: `N` is the limit, a stop token is never part of it.

    Attributes:
        tokens: `[B, N]`, padded with 0 behind `lengths`.
        lengths: `[B]`.
        finished: `[B]`, False where the limit cut the row off.
        cache: every written token is in it, the stop token is not.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, "B"]
    finished: Bool[Array, "B"]
    cache: Cache


class DecodeState(NamedTuple):
    """A loop under way.

    Attributes:
        count: how many tokens the longest row has.
        token: `[B]`, the next of each row.
        active: `[B]`, False where that is a stop token, or the row takes no part.
        tokens: `[B, N]`, those written, padded with 0.
        cache: with the `N` tokens' slots at its end.
    """

    count: Int[Array, ""]
    token: Int[Array, "B"]
    active: Bool[Array, "B"]
    tokens: Int[Array, "B N"]
    cache: Cache

    @property
    def decoded(self) -> Decoded:
        """What is written so far."""
        lengths = self.cache.real[:, -self.tokens.shape[1] :].sum(axis=1, dtype=jnp.int32)
        return Decoded(self.tokens, lengths, ~self.active, self.cache)


def sample_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, "B"] | None, *, sampling: Sampling = Sampling()
) -> Int[Array, "B"]:
    """One token a row; row `i` uses its own key, so a row's text does not depend on its batch.

    The likeliest tokens need no keys.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, MASKED, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1)
        before = before - jax.nn.softmax(ordered, axis=-1)  # probability of what ranks above
        kept = jnp.where(before < sampling.top_p, ordered, jnp.inf)
        logits = jnp.where(logits < kept.min(axis=-1, keepdims=True), MASKED, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def decode(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "B D"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    keys: Key[Array, "B"] | None = None,
    sampling: Sampling = Sampling(),
    active: Bool[Array, "B"] | None = None,
) -> Decoded:
    """Writes up to `max_tokens` tokens a row, until a stop token; call it inside `jax.jit`.

    Args:
        hidden: the last real token's hidden state of each row, as `append` returned it.
        keys: a random key a row; needed unless `sampling.temperature` is 0.
        active: False on rows that take no part (padding rows, rows on another route).
    """
    active = jnp.ones(hidden.shape[0], bool) if active is None else active
    draw = make_draw(model, params, stop_ids=stop_ids, keys=keys, sampling=sampling)
    writing = init_decode(cache, hidden, draw, max_tokens=max_tokens, active=active)
    return decode_until(model, params, writing, draw, limit=max_tokens).decoded


# The next token of each row from its hidden state `[B, D]` and number, and where it is no stop.
Draw = Callable[[Array, Any], tuple[Int[Array, "B"], Bool[Array, "B"]]]


def make_draw(
    model: Decoder | Bart,
    params,
    *,
    stop_ids: Sequence[int],
    keys: Key[Array, "B"] | None = None,
    sampling: Sampling = Sampling(),
) -> Draw:
    """How a loop draws its tokens; its arguments are `decode`'s."""

    def draw(hidden, number):
        logits = model.apply({"params": params}, hidden, method="logits")
        row_keys = keys
        if keys is not None:
            row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        token = sample_tokens(logits, row_keys, sampling=sampling)
        return token, ~jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))

    return draw


def init_decode(
    cache: Cache,
    hidden: Float[Array, "B D"],
    draw: Draw,
    *,
    max_tokens: int,
    active: Bool[Array, "B"],
) -> DecodeState:
    """Draws the first token of each row that is `active` and makes room for `max_tokens`."""
    token, goes_on = draw(hidden, 0)
    tokens = jnp.zeros((len(token), max_tokens), jnp.int32)
    return DecodeState(jnp.int32(0), token, active & goes_on, tokens, grow(cache, max_tokens))


def decode_until(
    model: Decoder | Bart, params, writing: DecodeState, draw: Draw, *, limit: Int[Array, ""] | int
) -> DecodeState:
    """Writes until every row has ended or the longest has `limit` tokens."""
    base = writing.cache.real.shape[1] - writing.tokens.shape[1]

    def more(state):
        return (state.count < limit) & state.active.any()

    def step(state):
        count, token, active, tokens, cache = state
        column = jnp.where(active, token, 0)[:, None]
        tokens = jax.lax.dynamic_update_slice(tokens, column, (0, count))
        slot = base + count
        output, cache = write(model, params, cache, token[:, None], active[:, None], slot=slot)
        token, goes_on = draw(output.hidden[:, 0], count + 1)
        return DecodeState(count + 1, token, active & goes_on, tokens, cache)

    return jax.lax.while_loop(more, step, writing)
