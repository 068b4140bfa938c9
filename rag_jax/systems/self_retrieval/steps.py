"""The compiled steps of a query: read the question, search titles and passages, assess, answer."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, append, fork, grow, write_branches
from rag_jax.decoding.prompts import last_hidden, read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.decoding.score import score_at
from rag_jax.decoding.trie_beams import search_trie
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.sharding import constrain_rows

read = jax.jit(read_prompts, static_argnames="model")


# The likeliest titles, which end at `stops`, or passages, after what the cache has read.
search = jax.jit(search_trie, static_argnames=("model", "max_tokens", "config", "greedy"))


@partial(jax.jit, static_argnames="model")
def read_titles(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
) -> tuple[Cache, Float[Array, "R D"]]:
    """Reads `R / B` titles, each after a copy of its question's cache."""
    times = len(tokens) // len(cache.position)
    copies = jax.tree.map(  # [B, ...] -> [R, ...]
        lambda leaf: constrain_rows(jnp.repeat(leaf, times, axis=0), len(tokens)), cache
    )
    output, copies = append(model, params, copies, tokens, mask)
    return copies, last_hidden(output.hidden, mask)


@partial(jax.jit, static_argnames="model")
def assess(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "R T"],
    attention_mask: Bool[Array, "R T T"],
    depth: Int[Array, "R T"],
    places: Int[Array, "R C r"],
    reject: Int[Array, "r"],
) -> tuple[Cache, Float[Array, "R T D"], Float[Array, "R C"]]:
    """Reads candidates after each question, and scores their rejection.

    Args:
        tokens: each candidate up to the cue, and after it the rejection without its last token;
            packed, with `attention_mask` and `depth`, by `pack_texts`.
        places: for each candidate the positions of the tokens that predict the rejection's tokens.

    Returns:
        The cache, the hidden state of every token, and the log-probability of each candidate's
        rejection, in nats.
    """
    rows, width = tokens.shape
    cache = fork(model, cache, rows // len(cache.position))
    slot = cache.num_slots
    mask = jnp.pad(attention_mask, ((0, 0), (0, 0), (slot, 0)))
    at = {"slot": slot, "depth": depth, "length": slot + width}
    output, cache = write_branches(model, params, grow(cache, width), tokens, mask, **at)
    flat = places.reshape(rows, -1)  # [R, C, r] -> [R, C * r]
    targets = jnp.tile(reject, (rows, places.shape[1]))
    logprobs = score_at(model, params, output.hidden, flat, targets).reshape(places.shape)
    return cache, output.hidden, logprobs.sum(axis=-1)


@jax.jit
def pick_candidates(
    cache: Cache,
    hidden: Float[Array, "R T D"],
    rows: Int[Array, "B"],
    places: Int[Array, "B L"],
    lengths: Int[Array, "B"],
) -> tuple[Cache, Float[Array, "B D"]]:
    """One candidate of each question, without the candidates packed into the same row.

    The step that answers is then compiled once, however candidates were packed.

    Args:
        cache: from `assess`, as is `hidden`: slots of candidates, with the questions as prefix.
        rows: the row of each question's candidate.
        places: of the candidate's tokens up to the cue, in their order, padded.
        lengths: number of these tokens.

    Returns:
        A cache of the candidates, with the questions as prefix, and the cues' hidden states.
    """
    mask = jnp.arange(places.shape[1])[None] < lengths[:, None]
    at = places[:, None, None]
    layers, position = jax.tree.map(
        lambda leaf: constrain_rows(leaf[rows], len(rows)), (cache.layers, cache.position)
    )
    take = jnp.take_along_axis
    layers = tuple(
        (take(keys, at, axis=3), take(values, at.swapaxes(2, 3), axis=2)) for keys, values in layers
    )
    last = jnp.take_along_axis(places, lengths[:, None] - 1, axis=1)[:, 0]
    return Cache(layers, mask, position + lengths, cache.prefix), hidden[rows, last]


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def answer(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "B D"],
    accept: Int[Array, "a"],
    active: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"], Float[Array, "B"]]:
    """Greedy answers after one candidate of each question, their lengths and likelihoods.

    Likelihoods are those of `Decoded`.

    Args:
        cache: from `pick_candidates`, as is `hidden`.
        accept: tokens of the acceptance before the answer; may be empty.
    """
    if len(accept):
        tokens = jnp.tile(accept, (len(hidden), 1))
        output, cache = append(model, params, cache, tokens, jnp.ones_like(tokens, bool))
        hidden = output.hidden[:, -1]
    decoded = decode(
        model, params, cache, hidden, max_tokens=max_tokens, stop_ids=stop_ids, active=active
    )
    return decoded.tokens, decoded.lengths, decoded.likelihoods
