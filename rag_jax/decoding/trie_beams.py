"""Beam search along a trie: every text that is found is a sequence of the corpus.

A beam is at a node of the trie, and only the node's children compete, with their log-probabilities
over the whole vocabulary. That is the mask of transformers' `prefix_allowed_tokens_fn` (De Cao et
al. 2021), without a mask. A beam ends where one sequence remains, and another beam takes its place.
Beams are kept and ranked as in `search_beams`, with transformers' scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.data.batches import round_up
from rag_jax.decoding.beams import (
    BeamConfig,
    Beams,
    Continuations,
    Live,
    check_beams,
    has_probability,
    pick,
    search,
)
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.prompts import batch_prompts, check_prompts, read_prompts
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.losses import sum_exponentials
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch


class TrieBeams(NamedTuple):
    """Where each row's beams ended, best first; `N` is the limit of their length.

    Attributes:
        nodes: a leaf or a stop node, all of a row different; -1 where a row has fewer.
        tokens: from the start node to the node, padded with 0 after `lengths`.
        scores: by which beams are ranked; `MASKED` where a row has fewer.
        logprobs: in nats, of the tokens. A token without an alternative counts like any other, as
            in transformers; tokens after the leaf are not decoded and count nothing.
    """

    nodes: Int[Array, "B W"]
    tokens: Int[Array, "B W N"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    logprobs: Float[Array, "B W"]

    @property
    def exists(self) -> Bool[Array, "B W"]:
        """True where a beam ended."""
        return has_probability(self.scores)


class FoundSequence(NamedTuple):
    """A sequence of the corpus that a beam found.

    Attributes:
        rows: positions of the sequence in what the trie was built from; several if it came twice.
        tokens: the whole sequence, tokens after the leaf included.
        score: in nats over `length ** length_penalty`.
        logprob: of the tokens up to the leaf, in nats.
        length: number of tokens up to the leaf.
    """

    rows: list[int]
    tokens: list[int]
    score: float
    logprob: float
    length: int


class Children(NamedTuple):
    """Children that beams (`parents`) may continue with.

    Log-probabilities are in nats, up to the child; `MASKED` where there are fewer children.
    """

    logprobs: Float[Array, "B W"]
    parents: Int[Array, "B W"]
    nodes: Int[Array, "B W"]


def expand_nodes(
    trie: TrieArrays,
    ends: Bool[Array, "N"],
    nodes: Int[Array, "B w"],
    logprobs: Float[Array, "B w"],
    logits: Float[Array, "B w V"],
    *,
    beams: int,
    compete: bool,
) -> tuple[Children, Children]:
    """The best children of the nodes that beams are at: `beams` of a row.

    Args:
        ends: True on nodes where a path ends.
        logprobs: up to the nodes; `MASKED` for beams that take no part.
        compete: whether the children of all beams of a row compete. Otherwise each beam has its own
            best child.

    Returns:
        The best of all children, and the best of those where no path ends. The two are the same
        unless children compete.
    """
    rows, width = nodes.shape
    norms = sum_exponentials(logits)  # over the whole vocabulary
    first, after = trie.first_child[nodes], trie.first_child[nodes + 1]
    # Beams that take no part need no room.
    count = jnp.where(has_probability(logprobs), after - first, 0)
    before = logprobs - norms

    def best_of_row(total, child) -> Children:
        # [B, w, room] -> [B, w * room]
        best, place = jax.lax.top_k(total.reshape(rows, -1), beams)
        picked = jnp.take_along_axis(child.reshape(rows, -1), place, axis=1)
        return Children(best, place // total.shape[2], picked)

    def best_of_beam(total, child) -> Children:
        place = total.argmax(axis=2, keepdims=True)
        best, picked = (jnp.take_along_axis(x, place, axis=2)[..., 0] for x in (total, child))
        return Children(best, jnp.tile(jnp.arange(width, dtype=jnp.int32)[None], (rows, 1)), picked)

    def gather(room):
        place = jnp.arange(room)[None, None]
        is_child = place < count[..., None]
        child = jnp.where(is_child, first[..., None] + place, 0)  # [B, w, room]
        logit = jnp.take_along_axis(logits, trie.tokens[child], axis=2)
        total = jnp.where(is_child, before[..., None] + logit, MASKED)
        if not compete:
            return (best_of_beam(total, child),) * 2
        onward = jnp.where(ends[child], MASKED, total)
        return best_of_row(total, child), best_of_row(onward, child)

    # The narrowest width that holds all children; a single beam must have room for `beams`.
    bucket = (count.max() > jnp.asarray(trie.widths[:-1], jnp.int32)).sum()
    rooms = [max(room, -(-beams // width)) for room in trie.widths]
    return jax.lax.switch(bucket, [partial(gather, room) for room in rooms])


@dataclass(frozen=True)
class TriePaths:
    """Beams continue with the children of a trie's node; a leaf or a stop node ends them.

    Attributes:
        starts: the node that each row starts from.
        ends: True on nodes where a path ends.
        greedy: whether each beam takes its likeliest child, once the first token has parted them.
    """

    model: Decoder | Bart
    params: PyTree
    trie: TrieArrays
    starts: Int[Array, "B"]
    ends: Bool[Array, "N"]
    is_leaf: Bool[Array, "N"]
    max_tokens: int
    greedy: bool

    docs = 1
    extra_length = 0

    @property
    def last(self) -> int:
        """The step that ends every beam."""
        return self.max_tokens - 1

    def start(self, active: Bool[Array, "B"], beams: int) -> tuple[Live, Beams, Bool[Array, "B"]]:
        """One live beam a row, at the row's start; the others are filled from its children."""
        rows, starts = len(active), self.starts[:, None]
        tokens = jnp.zeros((rows, beams, self.max_tokens), jnp.int32)
        masked, none = jnp.full((rows, beams), MASKED), jnp.full((rows, beams), -1, jnp.int32)
        # A start that is a leaf is a finished beam.
        known = (active & self.is_leaf[self.starts])[:, None] & (jnp.arange(beams) == 0)[None]
        scores = jnp.where(known, 0.0, masked)
        finished = Beams(tokens, none + 1, jnp.where(known, starts, none), scores, scores)
        live = Live(tokens[:, :1], jnp.zeros_like(starts), jnp.zeros((rows, 1)), starts)
        return live, finished, active & ~self.is_leaf[self.starts]

    def expand(
        self, step: Int[Array, ""], hidden: Array, live: Live, config: BeamConfig
    ) -> tuple[Beams, Continuations]:
        """The best children of the beams' nodes."""
        logits = self.model.apply({"params": self.params}, hidden, method="logits")
        logits = logits.astype(jnp.float32)
        logits = logits.reshape(len(live.state), -1, logits.shape[-1])  # [B, w, V]
        beams = self.trie, self.ends, live.state, live.logprobs, logits
        compete = hidden.ndim == 2 or not self.greedy  # the first token parts greedy beams
        best, onward = expand_nodes(*beams, beams=config.num_beams, compete=compete)
        if self.greedy:
            onward = best._replace(logprobs=jnp.where(self.ends[best.nodes], MASKED, best.logprobs))
        tokens = self.trie.tokens[best.nodes]
        place = jnp.arange(self.max_tokens)[None, None] == step
        ended = Beams(
            jnp.where(place, tokens[..., None], pick(live.tokens, best.parents)),
            jnp.full_like(best.nodes, step + 1),
            best.nodes,
            jnp.where(self.ends[best.nodes], best.logprobs, MASKED),
            best.logprobs,
        )
        tokens = self.trie.tokens[onward.nodes]
        return ended, Continuations(onward.parents, tokens, onward.logprobs, onward.nodes)


@checked
def search_trie(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "B D"],
    trie: TrieArrays,
    starts: Int[Array, "B"],
    *,
    max_tokens: int,
    config: BeamConfig = BeamConfig(),
    greedy: bool = False,
    stops: Bool[Array, "N"] | None = None,
    active: Bool[Array, "B"] | None = None,
) -> TrieBeams:
    """The likeliest paths from each row's start node to leaves; for use inside `jax.jit`.

    A row's live beams are the `num_beams` likeliest paths that continue, whatever else ends. So a
    row finds `num_beams` leaves, or all leaves that there are. A path longer than the limit is not
    found.

    Args:
        cache: as for `beams.search`, as are `hidden` and `active`.
        starts: the node that each row starts from. If it is a leaf, the row finds the leaf, with no
            token and score 0.
        max_tokens: limit of a path; with `Trie.depth` every path can be found.
        greedy: the released code's search (Tang et al. 2024): beams part at the first token, which
            differs for each, and then each beam takes its likeliest child.
        stops: nodes where a beam ends, besides leaves, such as the ends of titles; by `Trie.mark`.

    Raises:
        ValueError: `config.min_tokens` is set; the trie alone says where a text may end.
    """
    if config.min_tokens:
        raise ValueError(f"min_tokens={config.min_tokens}: a path ends at its leaf")
    active = jnp.ones(hidden.shape[0], bool) if active is None else active
    is_leaf = trie.first_child[1:] == trie.first_child[:-1]
    ends = is_leaf if stops is None else is_leaf | stops
    paths = TriePaths(model, params, trie, starts, ends, is_leaf, max_tokens, greedy)
    beams = search(cache, hidden, paths, config, active)
    return TrieBeams(beams.ends, beams.tokens, beams.lengths, beams.scores, beams.logprobs)


@checked
def trie_search(
    model: Decoder | Bart,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    trie: Trie,
    *,
    config: BeamConfig = BeamConfig(),
    greedy: bool = False,
    batch_size: int = 16,
) -> list[list[FoundSequence]]:
    """The corpus's likeliest sequences after each prompt; the list-in, list-out `search_trie`.

    Prompts and batches are as in `generate`.

    Returns:
        For each prompt `config.num_beams` sequences, or all there are, best first.

    Raises:
        RagJaxError: as `generate` does, the number of beams is below 1, `min_tokens` is set, or the
            trie has tokens that the model does not have.
    """
    check_beams(config)
    if config.min_tokens:
        raise RagJaxError(f"min_tokens={config.min_tokens}: a path ends at its leaf; leave it 0")
    if max(trie.tokens.max(), trie.tails.max(initial=0)) >= model.config.vocab_size:
        raise RagJaxError(
            f"trie: it has tokens beyond the model's {model.config.vocab_size}; build it with the "
            "model's own tokenizer"
        )
    max_tokens = round_up(trie.depth, 16)
    check_prompts(model, prompts, max_tokens=max_tokens, batch_size=batch_size)
    results: list[list[FoundSequence]] = [[] for _ in prompts]
    settings = {"max_tokens": max_tokens, "config": config, "greedy": greedy}
    arrays = trie.place()
    for rows, batch in batch_prompts(model, prompts, batch_size=batch_size):
        beams = fetch(_search_batch(model, params, arrays, *shard_batch(batch), **settings))
        for b, i in enumerate(rows):
            results[i] = [
                FoundSequence(
                    trie.rows_at(beams.nodes[b, w]),
                    trie.sequence(beams.nodes[b, w]),
                    *(float(x[b, w]) for x in (beams.scores, beams.logprobs)),
                    int(beams.lengths[b, w]),
                )
                for w in beams.exists[b].nonzero()[0]
            ]
    return results


@partial(jax.jit, static_argnames=("model", "max_tokens", "config", "greedy"))
def _search_batch(model, params, trie, tokens, mask, **settings):
    cache, hidden = read_prompts(model, params, tokens, mask)
    starts = jnp.zeros(len(tokens), jnp.int32)
    return search_trie(
        model, params, cache, hidden, trie, starts, active=mask.any(axis=1), **settings
    )
