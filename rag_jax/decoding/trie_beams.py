"""Beam search along a trie, as one compiled loop: what it finds are sequences of the corpus.

A beam carries the node it stands at, and only that node's children compete, with their
log-probabilities over the whole vocabulary: the mask of transformers' `prefix_allowed_tokens_fn`
(De Cao et al. 2021), without a mask. A beam ends where its sequence is known, and its place goes to
another. Beams are kept and ranked as in `search_beams`, with transformers' scores.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rag_jax.data.batches import round_up
from rag_jax.decoding.beams import (
    BeamConfig,
    branch_mask,
    has_probability,
    keep_best,
    may_improve,
    pick,
)
from rag_jax.decoding.cache import Cache, fork, grow, write_branches
from rag_jax.decoding.generate import batch_prompts, check_prompts, read_prompts
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch


class TrieBeams(NamedTuple):
    """Where each row's beams ended, best first; `N` is the limit.

    Attributes:
        nodes: `[B, W]`, a leaf or a stop, all of a row different; -1 where a row has fewer.
        tokens: `[B, W, N]`, from the start node to there, padded with 0 behind `lengths`.
        lengths: `[B, W]`.
        scores: `[B, W]`, what they are ranked by; `MASKED` where a row has fewer.
        logprobs: `[B, W]`, of the tokens, in nats. One without an alternative counts like any
            other, as in transformers; those behind a leaf are not decoded and count nothing.
    """

    nodes: Int[Array, "B W"]
    tokens: Int[Array, "B W N"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    logprobs: Float[Array, "B W"]

    @property
    def real(self) -> Bool[Array, "B W"]:
        """True where something was found."""
        return has_probability(self.scores)


class FoundSequence(NamedTuple):
    """What one beam found.

    Attributes:
        rows: where it stood in what the trie was built from; several where equal ones did.
        tokens: all of it, those behind its leaf included.
        score: in nats over `length ** length_penalty`.
        logprob: of the tokens up to its leaf, in nats.
        length: their number.
    """

    rows: list[int]
    tokens: list[int]
    score: float
    logprob: float
    length: int


class _Live(NamedTuple):
    """The beams that go on: nodes and log-probabilities `[B, W]`, tokens `[B, W, N]`."""

    nodes: Int[Array, "B W"]
    tokens: Int[Array, "B W N"]
    logprobs: Float[Array, "B W"]


class Continuations(NamedTuple):
    """The log-probability up to each child, the beam that it goes on from, and its node."""

    logprobs: Float[Array, "B W"]
    parents: Int[Array, "B W"]
    nodes: Int[Array, "B W"]


def expand(
    trie: TrieArrays,
    ends: Bool[Array, "N"],
    nodes: Int[Array, "B w"],
    logprobs: Float[Array, "B w"],
    logits: Float[Array, "B w V"],
    norms: Float[Array, "B w"],
    *,
    beams: int,
    part: bool,
) -> tuple[Continuations, Continuations]:
    """What beams may go on to: `beams` children a row, `MASKED` where there are fewer.

    Args:
        ends: where a path ends.
        nodes: where the beams stand.
        logprobs: up to there; `MASKED` for beams that take no part.
        logits: of the next token.
        norms: `logsumexp` of each beam's logits, over the whole vocabulary.
        part: whether the children of all beams compete. Otherwise each beam has its own best child.

    Returns:
        The best of all, and the best of those that do not end; without `part` the same.
    """
    rows, width = nodes.shape
    first, behind = trie.first_child[nodes], trie.first_child[nodes + 1]
    # Beams that take no part need no room.
    count = jnp.where(has_probability(logprobs), behind - first, 0)
    before = logprobs - norms

    def best_of_row(total, child) -> Continuations:
        best, place = jax.lax.top_k(total.reshape(rows, -1), beams)
        picked = jnp.take_along_axis(child.reshape(rows, -1), place, axis=1)
        return Continuations(best, place // total.shape[2], picked)

    def best_of_beam(total, child) -> Continuations:
        place = total.argmax(axis=2, keepdims=True)
        best, picked = (jnp.take_along_axis(x, place, axis=2)[..., 0] for x in (total, child))
        return Continuations(best, jnp.tile(jnp.arange(width)[None], (rows, 1)), picked)

    def gather(room):
        place = jnp.arange(room)[None, None]
        is_child = place < count[..., None]
        child = jnp.where(is_child, first[..., None] + place, 0)
        more = jnp.take_along_axis(logits, trie.tokens[child], axis=2)
        total = jnp.where(is_child, before[..., None] + more, MASKED)
        if not part:
            return (best_of_beam(total, child),) * 2
        onward = jnp.where(ends[child], MASKED, total)
        return best_of_row(total, child), best_of_row(onward, child)

    # The narrowest that holds all children; one beam alone must have room for `beams`.
    bucket = (count.max() > jnp.asarray(trie.widths[:-1], jnp.int32)).sum()
    rooms = [max(room, -(-beams // width)) for room in trie.widths]
    return jax.lax.switch(bucket, [partial(gather, room) for room in rooms])


def search_trie(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "B D"],
    trie: TrieArrays,
    starts: Int[Array, "B"],
    *,
    max_tokens: int,
    search: BeamConfig = BeamConfig(),
    greedy: bool = False,
    stops: Bool[Array, "N"] | None = None,
    active: Bool[Array, "B"] | None = None,
) -> TrieBeams:
    """Finds the likeliest paths from each row's start node to leaves; call it inside `jax.jit`.

    The live beams of a row are the `num_beams` likeliest paths that go on, whatever ends beside
    them; so a row finds as many leaves as it has beams, or all there are. A path that is longer
    than the limit is not found.

    Args:
        cache: what was read; all beams share it (see `fork`).
        hidden: the hidden state of each of its rows' last token.
        trie: made by `Trie.place`.
        starts: the node that each row starts from. One that is a leaf is what the row finds, with
            no token and score 0.
        max_tokens: the limit; `Trie.depth` lets all be found.
        search: without `min_tokens`.
        greedy: the released code's way (Tang et al. 2024): beams part at the first token, which is
            another for each, and from there each takes its likeliest child.
        stops: where a beam ends, beside leaves, such as at the ends of titles; by `Trie.mark`.
        active: False on rows that take no part; they find nothing.

    Raises:
        ValueError: `search.min_tokens` is set; it is the trie that says where a text may end.
    """
    if search.min_tokens:
        raise ValueError(f"min_tokens={search.min_tokens}: a path ends at its leaf")
    rows, beams, last = hidden.shape[0], search.num_beams, max_tokens - 1
    active = jnp.ones(rows, bool) if active is None else active
    places = jnp.arange(max_tokens)[None, None]
    is_leaf = trie.first_child[1:] == trie.first_child[:-1]
    ends = is_leaf if stops is None else is_leaf | stops

    def choose(i, hidden, live, found, going, *, part):
        """Token `i` of every beam: what ends there, what goes on, and from which beam."""
        logits = model.apply({"params": params}, hidden, method="logits").astype(jnp.float32)
        logits = logits.reshape(rows, -1, logits.shape[-1])
        logprobs = jnp.where(going[:, None], live.logprobs, MASKED)
        norms = jax.nn.logsumexp(logits, axis=-1)
        best, onward = expand(
            trie, ends, live.nodes, logprobs, logits, norms, beams=beams, part=part
        )
        if greedy:
            still = jnp.where(ends[best.nodes], MASKED, best.logprobs)
            onward = best._replace(logprobs=still)

        def extend(candidates):
            token = trie.tokens[candidates.nodes][..., None]
            return jnp.where(places == i, token, pick(live.tokens, candidates.parents))

        ended = ends[best.nodes] & has_probability(best.logprobs)
        scores = best.logprobs / (i + 1) ** search.length_penalty
        new = TrieBeams(
            best.nodes,
            extend(best),
            jnp.full_like(best.nodes, i + 1),
            jnp.where(ended, scores, MASKED),
            best.logprobs,
        )
        found = keep_best(found, new)
        live = _Live(onward.nodes, extend(onward), onward.logprobs)
        going &= may_improve(
            search,
            onward.logprobs.max(axis=1),
            found.scores,
            length=i + 1,
            last_length=last + 1,
        )
        return live, found, going, onward.parents

    def more(state):
        i, _, _, going, *_ = state
        return (i <= last) & going.any()

    def step(state):
        i, live, found, going, parents, seen, cache = state
        slot = base + (i - 1) * beams
        seen = branch_mask(seen, parents, slot)
        output, cache = write_branches(
            model,
            params,
            cache,
            trie.tokens[live.nodes],
            seen,
            slot=slot,
            depth=i - 1,
            length=base + max_tokens,
        )
        chosen = choose(i, output.hidden, live, found, going, part=not greedy)
        return i + 1, *chosen, seen, cache

    masked = jnp.full((rows, beams), MASKED)
    none = jnp.full((rows, beams), -1)
    tokens = jnp.zeros((rows, beams, max_tokens), jnp.int32)
    found = TrieBeams(none, tokens, none + 1, masked, masked)
    # A start that is a leaf is a result already.
    known = (active & is_leaf[starts])[:, None] & (jnp.arange(beams) == 0)[None]
    found = found._replace(
        nodes=jnp.where(known, starts[:, None], none),
        scores=jnp.where(known, 0.0, masked),
        logprobs=jnp.where(known, 0.0, masked),
    )
    # One beam a row, from whose children the others are filled.
    live = _Live(starts[:, None], tokens[:, :1], jnp.zeros((rows, 1)))
    going = active & ~is_leaf[starts]
    started = choose(jnp.int32(0), hidden, live, found, going, part=True)
    cache = fork(model, cache, 1)
    base = cache.real.shape[1]
    cache = grow(cache, max_tokens * beams)
    seen = jnp.zeros((rows, beams, cache.real.shape[1]), bool)
    state = (jnp.int32(1), *started, seen, cache)
    return jax.lax.while_loop(more, step, state)[2]


def trie_search(
    model: Decoder | Bart,
    params,
    prompts: Sequence[Sequence[int]],
    trie: Trie,
    *,
    search: BeamConfig = BeamConfig(),
    greedy: bool = False,
    batch_size: int = 16,
) -> list[list[FoundSequence]]:
    """The corpus's likeliest sequences behind each prompt; the list-in, list-out `search_trie`.

    Prompts and batches are as in `generate`.

    Returns:
        For each prompt `search.num_beams` of them, or all there are, best first.

    Raises:
        RagJaxError: as `generate` does, there is no beam, `min_tokens` is set, or the trie has
            tokens that the model does not.
    """
    if search.num_beams < 1:
        raise RagJaxError(f"num_beams={search.num_beams}: must be at least 1")
    if search.min_tokens:
        raise RagJaxError(f"min_tokens={search.min_tokens}: a path ends at its leaf; leave it 0")
    if max(trie.tokens.max(), trie.tails.max(initial=0)) >= model.config.vocab_size:
        raise RagJaxError(
            f"trie: it has tokens beyond the model's {model.config.vocab_size}; build it with the "
            "model's own tokenizer"
        )
    max_tokens = round_up(trie.depth, 16)
    check_prompts(model, prompts, max_tokens=max_tokens, batch_size=batch_size)
    results: list[list[FoundSequence]] = [[] for _ in prompts]
    settings = {"max_tokens": max_tokens, "search": search, "greedy": greedy}
    arrays = trie.place()
    for rows, batch in batch_prompts(model, prompts, batch_size=batch_size):
        found = fetch(_search_batch(model, params, arrays, *shard_batch(batch), **settings))
        for b, i in enumerate(rows):
            results[i] = [
                FoundSequence(
                    trie.rows_at(found.nodes[b, w]),
                    trie.sequence(found.nodes[b, w]),
                    *(float(x[b, w]) for x in (found.scores, found.logprobs)),
                    int(found.lengths[b, w]),
                )
                for w in found.real[b].nonzero()[0]
            ]
    return results


@partial(jax.jit, static_argnames=("model", "max_tokens", "search", "greedy"))
def _search_batch(model, params, trie, tokens, mask, **settings):
    cache, hidden = read_prompts(model, params, tokens, mask)
    starts = jnp.zeros(len(tokens), jnp.int32)
    return search_trie(
        model, params, cache, hidden, trie, starts, active=mask.any(axis=1), **settings
    )
