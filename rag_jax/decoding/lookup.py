"""Lookup decoding: several tokens a pass, copied from the row's own text and checked by the model.

Text that repeats its prompt, as answers from passages and rewrites do, is drafted by looking up
what followed the last few tokens before (Saxena 2023, prompt lookup decoding). One pass reads the
draft, and what the model itself would have written of it is kept (Leviathan et al. 2023, with the
likeliest token for a sample). The tokens are those of `decode`; a draft that is wrong costs a wider
pass.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, grow, write
from rag_jax.decoding.sample import Decoded, continues_after, sample_tokens
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.arguments import checked

NGRAM = 3  # last tokens that are looked up, at most; a longer match is taken first


class LookupState(NamedTuple):
    """The state of a lookup loop.

    Attributes:
        slot: that the next token is written at.
        last_token: sampled but not yet written.
        active: False where the last token is a stop token or the row takes no part.
        tokens: the tokens written, padded with 0.
        lengths: number of these.
        text: what the row has read and written, and then the last token.
        ends: number of the text's tokens.
        logprobs, last_logprob: as in `DecodeState`.
    """

    slot: Int[Array, ""]
    last_token: Int[Array, "B"]
    active: Bool[Array, "B"]
    tokens: Int[Array, "B N"]
    lengths: Int[Array, "B"]
    text: Int[Array, "B H"]
    ends: Int[Array, "B"]
    cache: Cache
    logprobs: Float[Array, "B"]
    last_logprob: Float[Array, "B"]


def find_drafts(
    text: Int[Array, "B H"], ends: Int[Array, "B"], *, drafted: int
) -> tuple[Int[Array, "B W"], Int[Array, "B"]]:
    """What followed the last tokens of each row's text where they stood before.

    The place with the longest match is taken, of several the last.

    Args:
        ends: number of tokens of each text.
        drafted: maximum number W of tokens to draft.

    Returns:
        The drafts, and how many of their tokens mean something.
    """
    places = jnp.arange(text.shape[1])
    is_before = places[None] < ends[:, None] - 1
    matched = jnp.zeros(text.shape, jnp.int32)
    fits = is_before
    for back in range(NGRAM):
        wanted = jnp.take_along_axis(text, jnp.maximum(ends - 1 - back, 0)[:, None], axis=1)
        shifted = jnp.roll(text, back, axis=1)
        is_there = (places >= back)[None] & (ends - 1 - back >= 0)[:, None]
        fits = fits & is_there & (shifted == wanted)
        matched += fits
    best = jnp.argmax(matched * text.shape[1] + jnp.where(matched > 0, places[None], 0), axis=1)
    is_found = jnp.take_along_axis(matched, best[:, None], axis=1)[:, 0] > 0
    follows = best[:, None] + 1 + jnp.arange(drafted)[None]
    draft = jnp.take_along_axis(text, jnp.minimum(follows, text.shape[1] - 1), axis=1)
    count = jnp.where(is_found, jnp.clip(ends - 1 - best, 0, drafted), 0)
    return draft, count.astype(jnp.int32)


@checked
def decode_by_lookup(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "B D"],
    text: Int[Array, "B T"],
    ends: Int[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    drafted: int,
    active: Bool[Array, "B"] | None = None,
) -> Decoded:
    """As `decode` for the likeliest tokens; for use inside `jax.jit`.

    Rounding apart: a draft's tokens are read together, which adds up in another order.

    Args:
        cache: as for `decode`, as are `hidden` and `active`.
        text: what is looked up in: what the rows have read, or a part of it, without padding.
        ends: number of tokens of each text.
        drafted: number of tokens that a pass checks, at most.
    """
    rows = len(hidden)
    active = jnp.ones(rows, bool) if active is None else active
    # Rows are written at the same slots: a row that keeps fewer tokens than another leaves some
    # empty. Beyond the slots for that, no more are kept than the slowest row keeps for certain.
    spare = drafted if rows == 1 else max_tokens + drafted
    token, logprob = _choose(model, params, hidden)
    # The text may end with what is written and one token more.
    text = jnp.pad(text, [(0, 0), (0, max_tokens + 1)])
    state = LookupState(
        slot=jnp.int32(cache.num_slots),
        last_token=token,
        active=active & continues_after(token, stop_ids),
        tokens=jnp.zeros((rows, max_tokens), jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        text=text.at[jnp.arange(rows), ends].set(token),
        ends=ends + 1,
        cache=grow(cache, max_tokens + spare + drafted),
        logprobs=jnp.zeros_like(logprob),
        last_logprob=jnp.where(active, logprob, 0.0),
    )

    def is_writing(state: LookupState) -> Bool[Array, "B"]:
        return state.active & (state.lengths < max_tokens)

    def step(state: LookupState) -> LookupState:
        writing = is_writing(state)
        left = jnp.where(writing, max_tokens - state.lengths, 0)
        room = state.cache.num_slots - drafted - state.slot - left.max()
        limit = jnp.minimum(left - 1, room)
        return _step(model, params, state, writing, limit, stop_ids=stop_ids, drafted=drafted)

    state = jax.lax.while_loop(lambda state: is_writing(state).any(), step, state)
    logprobs = state.logprobs + jnp.where(state.active, 0.0, state.last_logprob)
    return Decoded(state.tokens, state.lengths, ~state.active, state.cache, logprobs)


def _choose(
    model: Decoder, params: PyTree, hidden: Float[Array, "B *T D"]
) -> tuple[Int[Array, "B *T"], Float[Array, "B *T"]]:
    """The likeliest tokens and their log-probabilities."""
    logits = model.apply({"params": params}, hidden, method="logits")
    tokens = sample_tokens(logits, None)
    return tokens, token_logprobs(logits, tokens)


def _step(
    model: Decoder,
    params: PyTree,
    state: LookupState,
    writing: Bool[Array, "B"],
    limit: Int[Array, "B"],
    *,
    stop_ids: Sequence[int],
    drafted: int,
) -> LookupState:
    """Writes each row's last token with a draft, and keeps of the draft at most `limit` tokens."""
    draft, count = find_drafts(state.text, state.ends, drafted=drafted)
    columns, rows = jnp.arange(1 + drafted)[None], jnp.arange(len(draft))[:, None]
    read = jnp.concatenate([state.last_token[:, None], draft], axis=1)
    is_read = writing[:, None] & (columns <= count[:, None])
    output, cache = write(model, params, state.cache, read, is_read, slot=state.slot)
    best, logprobs = _choose(model, params, output.hidden)  # [B, 1 + drafted]
    is_right = (draft == best[:, :-1]) & (columns[:, 1:] <= count[:, None])
    is_right &= continues_after(draft, stop_ids) & (columns[:, :-1] < limit[:, None])
    kept = jnp.cumprod(is_right, axis=1).sum(axis=1, dtype=jnp.int32)  # of the draft
    is_kept = writing[:, None] & (columns <= kept[:, None])
    mask = jax.lax.dynamic_update_slice_in_dim(cache.token_mask, is_kept, state.slot, axis=1)
    position = state.cache.position + is_kept.sum(axis=1, dtype=jnp.int32)
    token = jnp.take_along_axis(best, kept[:, None], axis=1)[:, 0]
    token = jnp.where(writing, token, state.last_token)
    # Written are the last token and the kept ones of the draft; the next one is the last now.
    written = state.last_logprob + (logprobs * (columns < kept[:, None])).sum(axis=1)
    last_logprob = jnp.take_along_axis(logprobs, kept[:, None], axis=1)[:, 0]

    def put(array: Int[Array, "B M"], starts: Int[Array, "B"], new: Int[Array, "B W"]) -> Array:
        places = jnp.where(is_kept, starts[:, None] + columns, array.shape[1])
        return array.at[rows, places].set(new, mode="drop")

    following = jnp.where(columns < kept[:, None], jnp.roll(read, -1, axis=1), token[:, None])
    grown = is_kept.sum(axis=1, dtype=jnp.int32)
    return LookupState(
        state.slot + jnp.where(writing, 1 + kept, 0).max(),
        token,
        state.active & jnp.where(writing, continues_after(token, stop_ids), True),
        put(state.tokens, state.lengths, read),
        state.lengths + grown,
        put(state.text, state.ends, following),
        state.ends + grown,
        Cache(cache.layers, mask, position, cache.prefix),
        state.logprobs + jnp.where(writing, written, 0.0),
        jnp.where(writing, last_logprob, state.last_logprob),
    )
