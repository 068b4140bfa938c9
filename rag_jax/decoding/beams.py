"""Beam search: one compiled loop, with what a beam may continue with as a strategy.

A strategy (`Expansion`) gives, for each step, the continuations that end a beam and those that a
beam continues with. `vocabulary_beams.Vocabulary` continues with any token, `Mixture` too, by the
mixture of several documents' predictions (RAG-Token's decoding), and `trie_beams.TriePaths` with
the children of a trie's node.

Conventions are those of transformers' `generate`: a finished beam's score is its log-probability
over its length to the power `length_penalty`, the length counts the stop token and a forced BOS,
and a forced EOS has probability one. A beam that was never filled, or whose continuations are all
masked, is neither continued nor returned.
"""

from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, fork, grow, write_branches
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.errors import RagJaxError


class BeamConfig(NamedTuple):
    """How beams are kept; hashable, so a compiled loop can close over it.

    Attributes:
        num_beams: number of beams of a row. One beam with `early_stopping=True` is greedy decoding.
        length_penalty: the power of the length that a log-probability is divided by; 0 compares
            log-probabilities themselves.
        early_stopping: when a row is finished. True: with its last finished beam. False: once no
            live beam's score, at its present length, beats the worst finished beam. "never": once
            no live beam could beat it at any length up to the limit.
        min_tokens: number of tokens before a stop token may come.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    min_tokens: int = 0


class Beams(NamedTuple):
    """Each row's finished beams, best first; `N` is the limit of their length.

    Attributes:
        tokens: without the stop token, padded with 0 after `lengths`.
        ends: what ended the beam: the stop token, or -1 if the limit cut the beam off. Along a
            trie, the node.
        scores: by which beams are ranked; `MASKED` where a row has fewer beams.
        logprobs: in nats, of the tokens and the stop token, a forced one included.
    """

    tokens: Int[Array, "B W N"]
    lengths: Int[Array, "B W"]
    ends: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    logprobs: Float[Array, "B W"]

    @property
    def exists(self) -> Bool[Array, "B W"]:
        """True where there is a beam."""
        return has_probability(self.scores)


class Live(NamedTuple):
    """The beams that may continue.

    Attributes:
        tokens: those before `last_token` and `last_token` itself.
        last_token: chosen but not yet read.
        logprobs: in nats, up to the last token; `MASKED` where there is no beam.
        state: of the strategy, arrays `[B, w, ...]`, such as a trie's nodes.
    """

    tokens: Int[Array, "B w N"]
    last_token: Int[Array, "B w"]
    logprobs: Float[Array, "B w"]
    state: PyTree


class Continuations(NamedTuple):
    """Ways to extend a row's beams by one token.

    Attributes:
        parents: the beam that is extended.
        logprobs: in nats, up to the token; `MASKED` where there is no continuation.
        state: of the strategy, arrays `[B, n, ...]`.
    """

    parents: Int[Array, "B n"]
    tokens: Int[Array, "B n"]
    logprobs: Float[Array, "B n"]
    state: PyTree


class Expansion(Protocol):
    """What beams may continue with.

    Attributes:
        max_tokens: limit of a beam's tokens.
        docs: number of cache rows of a beam; their predictions are mixed.
        last: the step that ends every beam, from 0.
        extra_length: what a score's length counts beside the tokens and the stop token.
    """

    model: Decoder | Bart
    params: PyTree
    max_tokens: int
    docs: int
    last: int
    extra_length: int

    def start(self, active: Bool[Array, "B"], beams: int) -> tuple[Live, Beams, Bool[Array, "B"]]:
        """The state before the first token: live beams, finished beams, and the active rows."""

    def expand(
        self, step: Int[Array, ""], hidden: Array, live: Live, config: BeamConfig
    ) -> tuple[Beams, Continuations]:
        """The beams that end at a step, and the `config.num_beams` best that continue.

        Args:
            step: number of the token, from 0.
            hidden: the states that predict the token, `[R, D]` at step 0, then `[R, w, D]`.
            live: the beams; those of finished rows are `MASKED`.

        Returns:
            Beams with unnormalised scores, `MASKED` where a beam does not end; and continuations.
        """


class LoopState(NamedTuple):
    """The state of the beam search loop.

    Attributes:
        step: number of the next token, from 1.
        active: False for finished rows.
        parents: the beam of the step before that each live beam extends.
        attention_mask: the slots after the row that each beam attends to.
    """

    step: Int[Array, ""]
    live: Live
    finished: Beams
    active: Bool[Array, "B"]
    parents: Int[Array, "B w"]
    attention_mask: Bool[Array, "B w S"]
    cache: Cache


def has_probability(logprobs: Array) -> Array:
    """False where a log-probability, or a score, was masked."""
    return logprobs > MASKED / 2


def pick(tree: PyTree, beams: Int[Array, "B n"]) -> PyTree:
    """Picks beams of each row: arrays `[B, W, ...]` to `[B, n, ...]`."""
    take = jax.vmap(lambda leaf, picked: leaf[picked])
    return jax.tree.map(lambda leaf: take(leaf, beams), tree)


def keep_best(finished: Beams, new: Beams) -> Beams:
    """The best of each row's finished beams, old and new, as many as the old."""
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), finished, new)
    return pick(both, jax.lax.top_k(both.scores, finished.scores.shape[1])[1])


def may_improve(
    config: BeamConfig,
    onward: Float[Array, "B"],
    scores: Float[Array, "B W"],
    *,
    length: Int[Array, ""] | int,
    last_length: int,
) -> Bool[Array, "B"]:
    """Whether a row's search continues, by the best live beam and the scores of finished beams.

    `onward` is the log-probability of the best live beam, `length` the present length of live beams
    and `last_length` their length at the limit.
    """
    to_the_limit = config.early_stopping == "never" and config.length_penalty > 0
    best = onward / (last_length if to_the_limit else length) ** config.length_penalty
    active = has_probability(onward) & (best > scores.min(axis=1))
    if config.early_stopping is True:
        active &= ~has_probability(scores).all(axis=1)
    return active


def branch_mask(
    attention_mask: Bool[Array, "B W S"], parents: Int[Array, "B W"], slot: Int[Array, ""]
) -> Bool[Array, "B W S"]:
    """The slots that each beam attends to: those of its parent beam, and its own next slot.

    `slot` is that of the first beam's next token; the other beams' slots follow.
    """
    size = attention_mask.shape
    own = jnp.arange(size[2])[None] == slot + jnp.arange(size[1])[:, None]
    return pick(attention_mask, parents) | own[None]


def advance(
    expansion: Expansion,
    step: Int[Array, ""],
    hidden: Array,
    live: Live,
    finished: Beams,
    active: Bool[Array, "B"],
    config: BeamConfig,
) -> tuple[Live, Beams, Bool[Array, "B"], Int[Array, "B w"]]:
    """Chooses token `step` of every beam: live beams, finished beams, active rows, parents."""
    live = live._replace(logprobs=jnp.where(active[:, None], live.logprobs, MASKED))
    ended, onward = expansion.expand(step, hidden, live, config)
    length = step + 1 + expansion.extra_length
    scores = ended.scores / length**config.length_penalty
    kept = has_probability(ended.scores) & active[:, None]
    finished = keep_best(finished, ended._replace(scores=jnp.where(kept, scores, MASKED)))
    place = jnp.arange(live.tokens.shape[2])[None, None] == step
    tokens = jnp.where(place, onward.tokens[..., None], pick(live.tokens, onward.parents))
    lengths = {"length": length, "last_length": expansion.last + 1 + expansion.extra_length}
    active &= may_improve(config, onward.logprobs.max(axis=1), finished.scores, **lengths)
    live = Live(tokens, onward.tokens, onward.logprobs, onward.state)
    return live, finished, active, onward.parents


def init_beams(
    cache: Cache,
    hidden: Float[Array, "R D"],
    expansion: Expansion,
    config: BeamConfig,
    active: Bool[Array, "B"],
) -> LoopState:
    """The loop's state after the first token, which the prompt's last state predicts."""
    beams = config.num_beams
    chosen = advance(expansion, jnp.int32(0), hidden, *expansion.start(active, beams), config)
    cache = grow(fork(expansion.model, cache, 1), expansion.max_tokens * beams)
    nothing = jnp.zeros((len(active), beams, cache.num_slots), bool)
    return LoopState(jnp.int32(1), *chosen, nothing, cache)


def beam_step(state: LoopState, expansion: Expansion, config: BeamConfig) -> LoopState:
    """Reads every beam's last token and chooses the next one; the body of the loop."""
    step, live, finished, active, parents, attention_mask, cache = state
    base = cache.num_slots - expansion.max_tokens * config.num_beams
    slot = base + (step - 1) * config.num_beams
    attention_mask = branch_mask(attention_mask, parents, slot)
    output, cache = write_branches(
        expansion.model,
        expansion.params,
        cache,
        # A row's documents in turn, all beams of the row under each: [B, w] -> [B * docs, w].
        jnp.repeat(live.last_token, expansion.docs, axis=0),
        jnp.repeat(attention_mask, expansion.docs, axis=0),
        slot=slot,
        depth=step - 1,
        length=base + expansion.max_tokens,
    )
    chosen = advance(expansion, step, output.hidden, live, finished, active, config)
    return LoopState(step + 1, *chosen, attention_mask, cache)


def search(
    cache: Cache,
    hidden: Float[Array, "R D"],
    expansion: Expansion,
    config: BeamConfig,
    active: Bool[Array, "B"],
) -> Beams:
    """Runs the loop until no row is active; for use inside `jax.jit`.

    Args:
        cache: what was read, shared by all beams of a row and not copied.
        hidden: the state of each cache row's last token.
        active: False on rows that take no part; they find nothing.
    """

    def unfinished(state: LoopState) -> Bool[Array, ""]:
        return (state.step <= expansion.last) & state.active.any()

    def body(state: LoopState) -> LoopState:
        return beam_step(state, expansion, config)

    state = init_beams(cache, hidden, expansion, config, active)
    return jax.lax.while_loop(unfinished, body, state).finished


def check_beams(config: BeamConfig) -> None:
    """Raises a RagJaxError if the number of beams is below 1."""
    if config.num_beams < 1:
        raise RagJaxError(f"num_beams={config.num_beams}: must be at least 1")
