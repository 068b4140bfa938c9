"""The compiled steps of a query: prompt, titles, passages, their assessment, and the answer."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache, append, fork, grow, write_branches
from rag_jax.decoding.prompts import last_hidden, read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.decoding.trie import TrieArrays
from rag_jax.decoding.trie_beams import TrieBeams, search_trie
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.sharding import constrain_rows

read = jax.jit(read_prompts, static_argnames="model")


@partial(jax.jit, static_argnames=("model", "max_tokens", "search", "greedy"))
def find(
    model: Decoder,
    params,
    cache: Cache,
    hidden: Float[Array, "B D"],
    trie: TrieArrays,
    starts: Int[Array, "B"],
    stops: Bool[Array, "N"] | None,
    active: Bool[Array, "B"],
    *,
    max_tokens: int,
    search: BeamConfig,
    greedy: bool = False,
) -> TrieBeams:
    """Titles, which end at `stops`, or passages, behind what the cache has read."""
    settings = {"max_tokens": max_tokens, "search": search, "greedy": greedy}
    return search_trie(
        model, params, cache, hidden, trie, starts, stops=stops, active=active, **settings
    )


@partial(jax.jit, static_argnames="model")
def go_on(
    model: Decoder, params, cache: Cache, tokens: Int[Array, "R T"], mask: Bool[Array, "R T"]
) -> tuple[Cache, Float[Array, "R D"]]:
    """Reads `R / B` titles behind a copy of each question's cache."""
    times = len(tokens) // len(cache.position)
    copies = jax.tree.map(
        lambda leaf: constrain_rows(jnp.repeat(leaf, times, axis=0), len(tokens)), cache
    )
    output, copies = append(model, params, copies, tokens, mask)
    return copies, last_hidden(output.hidden, mask)


@partial(jax.jit, static_argnames="model")
def assess(
    model: Decoder,
    params,
    cache: Cache,
    tokens: Int[Array, "R T"],
    seen: Bool[Array, "R T T"],
    depth: Int[Array, "R T"],
    places: Int[Array, "R C r"],
    reject: Int[Array, "r"],
) -> tuple[Cache, Float[Array, "R T D"], Float[Array, "R C"]]:
    """Reads candidates behind each question, and judges them.

    Args:
        tokens: with `seen` and `depth` as `pack_texts` gives them: each candidate up to the cue,
            and all of the rejection but its last token behind it.
        places: of each candidate's tokens that the rejection's are drawn from.

    Returns:
        The cache, the hidden state of every token, and the log-probability of each candidate's
        rejection, in nats.
    """
    rows, width = tokens.shape
    cache = fork(model, cache, rows // len(cache.position))
    slot = cache.real.shape[1]
    output, cache = write_branches(
        model,
        params,
        grow(cache, width),
        tokens,
        jnp.pad(seen, ((0, 0), (0, 0), (slot, 0))),
        slot=slot,
        depth=depth,
        length=slot + width,
    )
    count = places.shape[1] * places.shape[2]
    states = jnp.take_along_axis(output.hidden, places.reshape(rows, count, 1), axis=1)
    logits = model.apply({"params": params}, states, method="logits")
    said = jnp.tile(reject, (rows, places.shape[1]))
    logprobs = token_logprobs(logits, said).reshape(places.shape)
    return cache, output.hidden, logprobs.sum(axis=-1)


@jax.jit
def pick(
    cache: Cache,
    hidden: Float[Array, "R T D"],
    rows: Int[Array, "B"],
    places: Int[Array, "B L"],
    lengths: Int[Array, "B"],
) -> tuple[Cache, Float[Array, "B D"]]:
    """One candidate of each question, without those that were read beside it.

    What goes on from it is then compiled once, however they were packed.

    Args:
        cache: with `hidden` what `assess` left: slots of candidates alone, the questions before.
        rows: where each question's candidate was read.
        places: of its tokens up to the cue, in their order; `lengths` of them count.

    Returns:
        The questions' caches with the candidates behind, and the cues' hidden states.
    """
    mask = jnp.arange(places.shape[1])[None] < lengths[:, None]
    at = places[:, None, None]
    layers, position = jax.tree.map(
        lambda leaf: constrain_rows(leaf[rows], len(rows)), (cache.layers, cache.position)
    )
    layers = tuple(
        (
            jnp.take_along_axis(keys, at, axis=3),
            jnp.take_along_axis(values, at.swapaxes(2, 3), axis=2),
        )
        for keys, values in layers
    )
    last = jnp.take_along_axis(places, lengths[:, None] - 1, axis=1)[:, 0]
    return Cache(layers, mask, position + lengths, cache.prefix), hidden[rows, last]


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def answer(
    model: Decoder,
    params,
    cache: Cache,
    hidden: Float[Array, "B D"],
    accept: Int[Array, "a"],
    active: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Greedy answers behind one candidate of each question.

    Args:
        cache: with `hidden` what `pick` gave.
        accept: what is said of a passage before the answer; may be nothing.
    """
    if len(accept):
        tokens = jnp.tile(accept, (len(hidden), 1))
        output, cache = append(model, params, cache, tokens, jnp.ones_like(tokens, bool))
        hidden = output.hidden[:, -1]
    decoded = decode(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=active,
    )
    return decoded.tokens, decoded.lengths
