"""Beam search as one compiled loop, under one prompt or under several documents that are mixed.

Conventions are those of transformers' `generate`: a finished beam's score is its log-probability
over its length to the power `length_penalty`, the length counts the stop token and a forced BOS,
and a forced EOS has probability one. Only what has probability competes: a beam that was never
filled, or that every continuation was taken from, is neither continued nor given back.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rag_jax.decoding.cache import Cache, fork, grow, write_branches
from rag_jax.decoding.generate import batch_prompts, check_prompts, read_prompts
from rag_jax.losses import mix_documents
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch


class BeamConfig(NamedTuple):
    """How beams are kept; hashable, so a compiled loop can close over it.

    Attributes:
        num_beams: how many a row has. One, with `early_stopping=True`, is greedy decoding.
        length_penalty: the power of the length that a log-probability is divided by; 0 compares
            log-probabilities themselves.
        early_stopping: when a row is done. True: with its last beam finished. False: once no live
            beam's score, at its present length, beats the worst finished one. "never": once none
            could beat it at any length up to the limit.
        min_tokens: so many tokens are written before a stop token may come.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    min_tokens: int = 0


class Beams(NamedTuple):
    """Each row's finished beams, best first; `N` is the limit, the stop token is not among them.

    Attributes:
        tokens: `[B, W, N]`, padded with 0 behind `lengths`.
        lengths: `[B, W]`.
        stops: `[B, W]`, the stop token that ended the beam, or -1 where the limit cut it off.
        scores: `[B, W]`, what they are ranked by; `MASKED` where a row has fewer beams.
        logprobs: `[B, W]`, of the tokens and the stop token, in nats, a forced one included.
    """

    tokens: Int[Array, "B W N"]
    lengths: Int[Array, "B W"]
    stops: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    logprobs: Float[Array, "B W"]

    @property
    def real(self) -> Bool[Array, "B W"]:
        """True where there is a beam."""
        return has_probability(self.scores)


class _Live(NamedTuple):
    """The beams that go on: tokens `[B, W, N]`, log-probabilities `[B, W]`."""

    tokens: Int[Array, "B W N"]
    logprobs: Float[Array, "B W"]


def has_probability(logprobs: Array) -> Array:
    """False where a log-probability, or a score, is one that was masked somewhere."""
    return logprobs > MASKED / 2


def pick(tree, beams: Int[Array, "B n"]):
    """Some of each row's beams: arrays `[B, W, ...]` to `[B, n, ...]`."""
    take = jax.vmap(lambda leaf, picked: leaf[picked])
    return jax.tree.map(lambda leaf: take(leaf, beams), tree)


def keep_best(found, new):
    """As many of each row's finished beams, old and new, as there were, by their `scores`."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), found, new)
    return pick(both, jax.lax.top_k(both.scores, found.scores.shape[1])[1])


def may_improve(
    search: BeamConfig,
    onward: Float[Array, "B"],
    scores: Float[Array, "B W"],
    *,
    length: Int[Array, ""] | int,
    last_length: int,
) -> Bool[Array, "B"]:
    """Whether a row goes on.

    Args:
        onward: log-probability of its best live beam.
        scores: those of its finished beams.
        length: of the live beams.
        last_length: the length that the limit lets them reach.
    """
    hopes_for_more = search.early_stopping == "never" and search.length_penalty > 0
    best = onward / (last_length if hopes_for_more else length) ** search.length_penalty
    going = has_probability(onward) & (best > scores.min(axis=1))
    if search.early_stopping is True:
        going &= ~has_probability(scores).all(axis=1)
    return going


def branch_mask(
    seen: Bool[Array, "B W S"], parents: Int[Array, "B W"], slot: Int[Array, ""]
) -> Bool[Array, "B W S"]:
    """Where each beam looks: at the slots of the one that it goes on from, and at its next own.

    Args:
        slot: of the first beam's next token; the others' are behind it (see `write_branches`).
    """
    own = jnp.arange(seen.shape[2])[None] == slot + jnp.arange(seen.shape[1])[:, None]
    return pick(seen, parents) | own[None]


def search_beams(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "R D"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    search: BeamConfig = BeamConfig(),
    doc_scores: Float[Array, "B K"] | None = None,
    active: Bool[Array, "B"] | None = None,
) -> Beams:
    """Writes each row's likeliest texts of up to `max_tokens` tokens; call it inside `jax.jit`.

    With `doc_scores` the `R = B * K` rows of the cache are `K` documents for each of `B` texts and
    the next token comes from their mixture, `p(y_i) = sum_z p(z) p(y_i | z, y_<i)`: that is
    RAG-Token's decoding (Lewis et al. 2020, section 2.5). A beam is `K` rows, which go on together.

    Args:
        cache: what was read, as `read_prompts` gives it. It is shared by all beams, not copied.
        hidden: the hidden state of each of its rows' last token.
        stop_ids: tokens that end a beam. An encoder-decoder's forced EOS is always one of them, and
            takes a place of its own behind the limit.
        doc_scores: logits of `p(z)`; None where each row is a text of its own.
        active: False on rows that take no part; they find nothing.
    """
    docs = 1 if doc_scores is None else doc_scores.shape[1]
    rows, beams = hidden.shape[0] // docs, search.num_beams
    forced, counted = None, 0
    if isinstance(model, Bart):
        forced, counted = model.config.forced_eos_id, len(model.config.start_ids) - 1
    last = max_tokens - (forced is None)  # the step that ends every beam
    stops = {*stop_ids, forced} - {None}
    stops = jnp.asarray(sorted(stops), jnp.int32)
    active = jnp.ones(rows, bool) if active is None else active
    places = jnp.arange(max_tokens)[None, None]

    def next_logprobs(hidden) -> Float[Array, "B w V"]:
        logits = model.apply({"params": params}, hidden, method="logits")
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        logprobs = logprobs.reshape(rows, docs, -1, logprobs.shape[-1])
        return logprobs[:, 0] if doc_scores is None else mix_documents(doc_scores, logprobs)

    def choose(i, logprobs, live, found, going):
        """Token `i` of every beam: what ends there, what goes on, from which beam and with what."""
        vocabulary = jnp.arange(logprobs.shape[-1])
        too_early = (i < search.min_tokens) & jnp.isin(vocabulary, stops)
        scored = jnp.where(too_early[None, None], MASKED, logprobs)
        if forced is not None:
            certain = jnp.where(vocabulary == forced, 0.0, MASKED)[None, None]
            scored = jnp.where(i == last, certain, scored)
        total = (live.logprobs[:, :, None] + scored).reshape(rows, -1)
        # Enough for `beams` to go on, even if every beam's stop tokens are among the best.
        kept = min((1 + len(stops)) * beams, total.shape[1])
        total, place = jax.lax.top_k(total, kept)
        parent, token = place // len(vocabulary), place % len(vocabulary)

        stopped = jnp.isin(token, stops)
        ended = stopped | (i == last)
        texts = pick(live.tokens, parent)
        texts = jnp.where((places == i) & ~stopped[..., None], token[..., None], texts)
        # Behind these, one that ended is only a reserve: it may not crowd out one that goes on.
        among_best = (jnp.arange(kept) < beams)[None] & has_probability(total)
        scores = total / (i + 1 + counted) ** search.length_penalty
        exact = total
        if forced is not None:
            to_the_end = pick(live.logprobs + logprobs[:, :, forced], parent)
            exact = jnp.where(i == last, to_the_end, total)
        new = Beams(
            texts,
            i + (~stopped).astype(jnp.int32),
            jnp.where(stopped, token, -1),
            jnp.where(ended & among_best & going[:, None], scores, MASKED),
            exact,
        )
        found = keep_best(found, new)

        onward, picked = jax.lax.top_k(jnp.where(ended, MASKED, total), beams)
        live = _Live(pick(texts, picked), onward)
        lengths = {"length": i + 1 + counted, "last_length": last + 1 + counted}
        going &= may_improve(search, onward[:, 0], found.scores, **lengths)
        return live, found, going, pick(parent, picked), pick(token, picked)

    def more(state):
        i, _, _, going, *_ = state
        return (i <= last) & going.any()

    def step(state):
        i, live, found, going, parent, token, seen, cache = state
        slot = base + (i - 1) * beams
        seen = branch_mask(seen, parent, slot)
        output, cache = write_branches(
            model,
            params,
            cache,
            # A text's documents in turn, all beams under each.
            jnp.repeat(token, docs, axis=0),
            jnp.repeat(seen, docs, axis=0),
            slot=slot,
            depth=i - 1,
            length=base + max_tokens,
        )
        logprobs = next_logprobs(output.hidden)
        return i + 1, *choose(i, logprobs, live, found, going), seen, cache

    # All beams start from one: the others are filled from its continuations.
    live = _Live(
        jnp.zeros((rows, beams, max_tokens), jnp.int32),
        jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, MASKED)[None], (rows, 1)),
    )
    none = jnp.zeros((rows, beams), jnp.int32)
    masked = jnp.full((rows, beams), MASKED)
    found = Beams(live.tokens, none, none - 1, masked, masked)
    started = choose(jnp.int32(0), next_logprobs(hidden), live, found, active)
    cache = fork(model, cache, 1)
    base = cache.real.shape[1]
    cache = grow(cache, max_tokens * beams)
    seen = jnp.zeros((rows, beams, cache.real.shape[1]), bool)
    state = (jnp.int32(1), *started, seen, cache)
    return jax.lax.while_loop(more, step, state)[2]


def beam_search(
    model: Decoder | Bart,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    search: BeamConfig = BeamConfig(),
    batch_size: int = 16,
) -> list[list[tuple[list[int], float]]]:
    """Each prompt's likeliest continuations; the list-in, list-out way to use `search_beams`.

    Prompts, batches and what is forced are as in `generate`, which `BeamConfig(1, early_stopping=True)`
    agrees with.

    Returns:
        For each prompt at most `search.num_beams` pairs, best first: the new tokens, without the
        stop token, and their score, in nats over `length ** length_penalty`.

    Raises:
        RagJaxError: as `generate` does, or there is no beam.
    """
    if search.num_beams < 1:
        raise RagJaxError(f"num_beams={search.num_beams}: must be at least 1")
    check_prompts(model, prompts, max_tokens=max_tokens, batch_size=batch_size)
    results: list[list[tuple[list[int], float]]] = [[] for _ in prompts]
    settings = {"max_tokens": max_tokens, "stop_ids": tuple(stop_ids), "search": search}
    for rows, arrays in batch_prompts(model, prompts, batch_size=batch_size):
        found = fetch(_search_batch(model, params, *shard_batch(arrays), **settings))
        for b, i in enumerate(rows):
            results[i] = [
                (found.tokens[b, w, : found.lengths[b, w]].tolist(), float(found.scores[b, w]))
                for w in found.real[b].nonzero()[0]
            ]
    return results


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "search"))
def _search_batch(model, params, tokens, mask, *, max_tokens, stop_ids, search):
    cache, hidden = read_prompts(model, params, tokens, mask)
    return search_beams(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        search=search,
        active=mask.any(axis=1),
    )
