"""Sampling: one token a row at a time, the likeliest or a random one, over a cache."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rag_jax.decoding.cache import Cache, grow, write
from rag_jax.losses import find_likeliest, token_logprobs
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import find_platform
from rag_jax.runtime.sharding import count_data_rows

# With fewer rows a pass costs about as much as with a quarter of them: it reads all weights.
_COMPACTED_FROM = 32
_COLDEST = 1e-6  # logits divided by less leave float32
_LIKELIEST = 1024  # tokens of a vocabulary that usually hold `top_p` of the probability


class Sampling(NamedTuple):
    """How the next token is sampled; hashable, so a compiled loop can close over it.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: sample among this number of likeliest tokens; 0 or more than there are for all.
        top_p: sample among the fewest likeliest tokens, at least one, that hold this much
            probability (Holtzman et al. 2020); 1 or more for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


class Decoded(NamedTuple):
    """The tokens that a loop wrote, at most `N` a row; a stop token is never among them.

    Attributes:
        tokens: padded with 0 after `lengths`.
        finished: False where the limit cut the row off.
        cache: with every written token, without the stop token.
        logprobs: log-probability in nats of each row's tokens and of its stop token, by the model
            itself, whatever the temperature.
    """

    tokens: Int[Array, "B N"]
    lengths: Int[Array, "B"]
    finished: Bool[Array, "B"]
    cache: Cache
    logprobs: Float[Array, "B"]

    @property
    def likelihoods(self) -> Float[Array, "B"]:
        """Mean log-probability in nats of each row's tokens and its stop token."""
        return self.logprobs / jnp.maximum(self.lengths + self.finished, 1)


class DecodeState(NamedTuple):
    """The state of a decoding loop.

    Attributes:
        step: number of tokens of the longest row.
        last_token: sampled but not yet written.
        active: False where the last token is a stop token or the row takes no part.
        tokens: the tokens written, padded with 0.
        cache: with slots for `N` tokens at its end.
        logprobs: log-probability in nats of the tokens written.
        last_logprob: of the last token; 0 where the row takes no part.
    """

    step: Int[Array, ""]
    last_token: Int[Array, "B"]
    active: Bool[Array, "B"]
    tokens: Int[Array, "B N"]
    cache: Cache
    logprobs: Float[Array, "B"]
    last_logprob: Float[Array, "B"]

    @property
    def decoded(self) -> Decoded:
        """The tokens written so far."""
        written = self.cache.token_mask[:, -self.tokens.shape[1] :]
        lengths = written.sum(axis=1, dtype=jnp.int32)
        # A stop token is not written, but it is part of what the model chose.
        logprobs = self.logprobs + jnp.where(self.active, 0.0, self.last_logprob)
        return Decoded(self.tokens, lengths, ~self.active, self.cache, logprobs)


class Sampled(NamedTuple):
    """A sampled token of each row, whether the row continues after it, and its log-probability."""

    token: Int[Array, "B"]
    continues: Bool[Array, "B"]
    logprob: Float[Array, "B"]


# A row's next token from the row's hidden state `[B, D]` and the token's number.
NextToken = Callable[[Array, Any], Sampled]


def check_sampling(sampling: Sampling) -> None:
    """Raises a RagJaxError if a field is out of its range."""
    temperature, top_k, top_p = sampling
    if temperature != 0 and not _COLDEST <= temperature < math.inf:
        raise RagJaxError(f"temperature={temperature}: must be 0, or at least {_COLDEST:g}")
    if not hasattr(top_k, "__index__") or top_k < 0:
        raise RagJaxError(f"top_k={top_k}: must be a whole number, at least 0")
    if not top_p >= 0:
        raise RagJaxError(f"top_p={top_p}: must be at least 0")


def sample_tokens(
    logits: Float[Array, "B V"], keys: Key[Array, "B"] | None, *, sampling: Sampling = Sampling()
) -> Int[Array, "B"]:
    """Samples one token a row.

    `keys` are one a row, so that a row's text does not depend on its batch; the likeliest tokens
    need none.
    """
    if sampling.temperature == 0:
        return find_likeliest(logits)
    logits = keep_likeliest(logits.astype(jnp.float32) / sampling.temperature, sampling)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_likeliest(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Logits in which all but the tokens that `top_k` and `top_p` allow are masked."""
    if 0 < sampling.top_k < logits.shape[-1]:
        # Not the last one: XLA makes a sort of all of a slice, a hundred times as slow on CPU.
        least = jax.lax.top_k(logits, sampling.top_k)[0].min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, MASKED, logits)
    if sampling.top_p < 1:
        logits = jnp.where(logits < _find_least(logits, sampling.top_p), MASKED, logits)
    return logits


def _find_least(logits: Float[Array, "B V"], top_p: float) -> Float[Array, "B 1"]:
    """The least logit among each row's fewest likeliest tokens that hold so much probability.

    Looks through the likeliest tokens, and sorts the vocabulary only if they do not hold it: that
    takes forty times as long on CPU.
    """
    whole = jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def find(ordered: Float[Array, "B n"]) -> Float[Array, "B 1"]:
        held = jnp.exp(ordered - whole)
        before = jnp.cumsum(held, axis=-1) - held  # probability of all likelier tokens
        kept = jnp.where(before < top_p, ordered, jnp.inf).at[:, 0].set(ordered[:, 0])
        return kept.min(axis=-1, keepdims=True)

    def find_in_all() -> Float[Array, "B 1"]:
        return find(jnp.sort(logits, axis=-1, descending=True))

    few = min(_LIKELIEST, logits.shape[-1])
    # The barrier because XLA makes a sort of all of a slice of `top_k`.
    ordered = jax.lax.optimization_barrier(jax.lax.top_k(logits, few))[0]
    least = find(ordered)
    # By the row, so that a row's text does not depend on its batch.
    is_enough = jnp.exp(ordered - whole).sum(axis=-1, keepdims=True) >= top_p
    others = jax.lax.cond(is_enough.all(), lambda: least, find_in_all)
    return jnp.where(is_enough, least, others)


def continues_after(tokens: Int[Array, "*B"], stop_ids: Sequence[int]) -> Bool[Array, "*B"]:
    """Whether a row continues after its token, which then is no stop token."""
    return ~jnp.isin(tokens, jnp.asarray(stop_ids, jnp.int32))


def make_next_token(
    model: Decoder | Bart,
    params: PyTree,
    *,
    stop_ids: Sequence[int],
    keys: Key[Array, "B"] | None = None,
    sampling: Sampling = Sampling(),
) -> NextToken:
    """The function that samples a loop's tokens; arguments are `decode`'s."""

    def next_token(hidden, number):
        logits = model.apply({"params": params}, hidden, method="logits")
        row_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        token = sample_tokens(logits, row_keys, sampling=sampling)
        # Where nothing reads the log-probabilities, the compiler leaves them out of the loop.
        return Sampled(token, continues_after(token, stop_ids), token_logprobs(logits, token))

    return next_token


def init_decode(
    cache: Cache,
    hidden: Float[Array, "B D"],
    next_token: NextToken,
    *,
    max_tokens: int,
    active: Bool[Array, "B"],
) -> DecodeState:
    """The state before the first write: the first token of each active row, and empty slots."""
    token, continues, logprob = next_token(hidden, 0)
    tokens = jnp.zeros((len(token), max_tokens), jnp.int32)
    return DecodeState(
        step=jnp.int32(0),
        last_token=token,
        active=active & continues,
        tokens=tokens,
        cache=grow(cache, max_tokens),
        logprobs=jnp.zeros_like(logprob),
        last_logprob=jnp.where(active, logprob, 0.0),
    )


def decode_step(
    model: Decoder | Bart, params: PyTree, state: DecodeState, next_token: NextToken
) -> DecodeState:
    """Writes each active row's last token and samples the next one; the body of the loop."""
    step, token, active, tokens, cache, logprobs, last_logprob = state
    column = jnp.where(active, token, 0)[:, None]
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, column, step, axis=1)
    slot = cache.num_slots - tokens.shape[1] + step
    output, cache = write(model, params, cache, token[:, None], active[:, None], slot=slot)
    logprobs += jnp.where(active, last_logprob, 0.0)
    token, continues, logprob = next_token(output.hidden[:, 0], step + 1)
    last_logprob = jnp.where(active, logprob, last_logprob)
    return DecodeState(step + 1, token, active & continues, tokens, cache, logprobs, last_logprob)


def decode_until(
    model: Decoder | Bart,
    params: PyTree,
    state: DecodeState,
    next_token: NextToken,
    *,
    limit: Int[Array, ""] | int,
    enough: int = 0,
) -> DecodeState:
    """Writes until no more than `enough` rows are active or the longest row has `limit` tokens."""

    def unfinished(state):
        return (state.step < limit) & (state.active.sum() > enough)

    return jax.lax.while_loop(
        unfinished, lambda state: decode_step(model, params, state, next_token), state
    )


def count_compacted(rows: int) -> int:
    """The `compact_to` that is worth its compiling: on one CPU, where a pass costs by the row."""
    is_slow = find_platform() == "cpu" and count_data_rows() == 1
    return rows // 4 if is_slow and rows >= _COMPACTED_FROM else 0


@checked
def decode(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "B D"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    keys: Key[Array, "B"] | None = None,
    sampling: Sampling = Sampling(),
    active: Bool[Array, "B"] | None = None,
    compact_to: int = 0,
) -> Decoded:
    """Writes up to `max_tokens` tokens a row, until a stop token; for use inside `jax.jit`.

    Args:
        cache: what the rows have read.
        hidden: the hidden state of each row's last token, as `append` returned it.
        keys: a random key a row; needed unless `sampling.temperature` is 0.
        active: False on rows that take no part (padding rows, rows on another route).
        compact_to: number of rows with which the loop goes on, without the ended ones, as soon as
            no more are active; 0 for all rows to the end. Not for parameters with an adapter a row,
            nor for rows that share a prefix with some of the others.

    Raises:
        RagJaxError: as `check_sampling`.
        ValueError: sampling at a temperature has no keys, or a prefix of some rows is compacted.
    """
    check_sampling(sampling)
    if keys is None and sampling.temperature != 0:
        raise ValueError(f"keys: temperature {sampling.temperature} needs a random key a row")
    active = jnp.ones(hidden.shape[0], bool) if active is None else active
    settings = {"stop_ids": stop_ids, "sampling": sampling}
    next_token = make_next_token(model, params, keys=keys, **settings)
    state = init_decode(cache, hidden, next_token, max_tokens=max_tokens, active=active)
    if not 0 < compact_to < len(active):
        return decode_until(model, params, state, next_token, limit=max_tokens).decoded
    state = decode_until(model, params, state, next_token, limit=max_tokens, enough=compact_to)
    rows = jnp.argsort(~state.active, stable=True)[:compact_to]
    keys = None if keys is None else keys[rows]
    next_token = make_next_token(model, params, keys=keys, **settings)
    few = decode_until(model, params, _pick(state, rows), next_token, limit=max_tokens)
    return _put_back(state, rows, few).decoded


def _pick(state: DecodeState, rows: Int[Array, "b"]) -> DecodeState:
    """The state of some rows."""
    cache, count = state.cache, len(state.active)
    prefix, shared = cache.prefix, cache.prefix and len(cache.prefix.position)
    if shared not in (None, 1, count):
        raise ValueError(f"compact_to: {count} rows share {shared} prefixes; set 0")

    def pick(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[rows], tree)

    prefix = pick(prefix) if shared == count else prefix
    own = pick(_list_rows(state))
    return own._replace(step=state.step, cache=replace(own.cache, prefix=prefix))


def _put_back(state: DecodeState, rows: Int[Array, "b"], few: DecodeState) -> DecodeState:
    """The state of all rows with what some of them have written since."""
    pairs = _list_rows(state), _list_rows(few)
    own = jax.tree.map(lambda leaf, new: leaf.at[rows].set(new), *pairs)
    return own._replace(step=few.step, cache=replace(own.cache, prefix=state.cache.prefix))


def _list_rows(state: DecodeState) -> DecodeState:
    """What has a row for each of the state's; no other part."""
    return state._replace(step=None, cache=replace(state.cache, prefix=None))
