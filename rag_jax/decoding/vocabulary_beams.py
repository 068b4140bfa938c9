"""Beam search over the whole vocabulary, after one prompt or after documents that are mixed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

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
from rag_jax.losses import mix_documents
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch


@dataclass(frozen=True)
class Vocabulary:
    """Beams continue with any token; a stop token or the limit ends them.

    Attributes:
        stop_ids: tokens that end a beam; an encoder-decoder's forced EOS is added.
        max_tokens: limit of a beam's tokens. A forced EOS takes a further place after the limit.
    """

    model: Decoder | Bart
    params: PyTree
    stop_ids: Sequence[int]
    max_tokens: int

    docs = 1

    @property
    def forced(self) -> int | None:
        """The token that an encoder-decoder's texts end with at the limit."""
        return self.model.config.forced_eos_id if isinstance(self.model, Bart) else None

    @property
    def last(self) -> int:
        """The step that ends every beam."""
        return self.max_tokens - (self.forced is None)

    @property
    def extra_length(self) -> int:
        """A forced BOS counts in the length."""
        return len(self.model.config.start_ids) - 1 if isinstance(self.model, Bart) else 0

    def start(self, active: Bool[Array, "B"], beams: int) -> tuple[Live, Beams, Bool[Array, "B"]]:
        """One live beam a row; the others are filled from its continuations."""
        rows = len(active)
        tokens = jnp.zeros((rows, beams, self.max_tokens), jnp.int32)
        logprobs = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, MASKED)[None], (rows, 1))
        zeros, masked = jnp.zeros((rows, beams), jnp.int32), jnp.full((rows, beams), MASKED)
        finished = Beams(tokens, zeros, zeros - 1, masked, masked)
        return Live(tokens, zeros, logprobs, ()), finished, active

    def next_logprobs(self, hidden: Array) -> Float[Array, "B w V"]:
        """Log-probabilities of each beam's next token."""
        logits = self.model.apply({"params": self.params}, hidden, method="logits")
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        # [R, V] or [R, w, V] -> [B, docs, w, V]
        logprobs = logprobs.reshape(hidden.shape[0] // self.docs, self.docs, -1, logprobs.shape[-1])
        return self.combine(logprobs)

    def combine(self, logprobs: Float[Array, "B K w V"]) -> Float[Array, "B w V"]:
        """The prediction of a beam from that of its documents, of which there is one."""
        return logprobs[:, 0]

    def expand(
        self, step: Int[Array, ""], hidden: Array, live: Live, config: BeamConfig
    ) -> tuple[Beams, Continuations]:
        """The best continuations over the whole vocabulary."""
        stops = jnp.asarray(sorted({*self.stop_ids, self.forced} - {None}), jnp.int32)
        logprobs, beams = self.next_logprobs(hidden), config.num_beams
        vocabulary = jnp.arange(logprobs.shape[-1])
        too_early = (step < config.min_tokens) & jnp.isin(vocabulary, stops)
        scored = jnp.where(too_early[None, None], MASKED, logprobs)
        if self.forced is not None:
            certain = jnp.where(vocabulary == self.forced, 0.0, MASKED)[None, None]
            scored = jnp.where(step == self.last, certain, scored)
        # [B, w, V] -> [B, w * V]
        total = (live.logprobs[:, :, None] + scored).reshape(len(live.logprobs), -1)
        # Enough for `beams` to continue, even if every beam's stop tokens are among the best.
        count = min((1 + len(stops)) * beams, total.shape[1])
        total, place = jax.lax.top_k(total, count)
        parents, tokens = place // len(vocabulary), place % len(vocabulary)

        stopped = jnp.isin(tokens, stops)
        ends = stopped | (step == self.last)
        # A beam that ends after the best `beams` is a reserve: it may not replace a live beam.
        among_best = (jnp.arange(count) < beams)[None] & has_probability(total)
        exact = total
        if self.forced is not None:
            to_the_end = pick(live.logprobs + logprobs[:, :, self.forced], parents)
            exact = jnp.where(step == self.last, to_the_end, total)
        written = (jnp.arange(live.tokens.shape[2])[None, None] == step) & ~stopped[..., None]
        ended = Beams(
            jnp.where(written, tokens[..., None], pick(live.tokens, parents)),
            step + (~stopped).astype(jnp.int32),
            jnp.where(stopped, tokens, -1),
            jnp.where(ends & among_best, total, MASKED),
            exact,
        )
        onward, picked = jax.lax.top_k(jnp.where(ends, MASKED, total), beams)
        return ended, Continuations(pick(parents, picked), pick(tokens, picked), onward, ())


@dataclass(frozen=True)
class Mixture(Vocabulary):
    """Beams continue by the mixture of `K` documents, `p(y_i) = sum_z p(z) p(y_i | z, y_<i)`.

    RAG-Token's decoding (Lewis et al. 2020, section 2.5). A beam is `K` cache rows, and
    `doc_scores` are logits of `p(z)`.
    """

    doc_scores: Float[Array, "B K"]

    @property
    def docs(self) -> int:
        """Number of documents K."""
        return self.doc_scores.shape[1]

    def combine(self, logprobs: Float[Array, "B K w V"]) -> Float[Array, "B w V"]:
        """The mixture of the documents' predictions."""
        return mix_documents(self.doc_scores, logprobs)


def make_expansion(
    model: Decoder | Bart,
    params: PyTree,
    stop_ids: Sequence[int],
    max_tokens: int,
    doc_scores: Float[Array, "B K"] | None = None,
) -> Vocabulary:
    """`Mixture` if there are scores of documents, else `Vocabulary`."""
    if doc_scores is None:
        return Vocabulary(model, params, stop_ids, max_tokens)
    return Mixture(model, params, stop_ids, max_tokens, doc_scores)


@checked
def search_beams(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    config: BeamConfig = BeamConfig(),
    doc_scores: Float[Array, "B K"] | None = None,
    active: Bool[Array, "B"] | None = None,
) -> Beams:
    """Each row's likeliest texts of up to `max_tokens` tokens; for use inside `jax.jit`.

    With `doc_scores` the `R = B * K` cache rows are `K` documents for each of `B` texts, and the
    next token comes from their mixture (see `Mixture`).

    Args:
        cache: from `read_prompts`; as for `beams.search`, as are `hidden` and `active`.
        stop_ids: tokens that end a text. An encoder-decoder's forced EOS always does, and takes a
            further place after the limit.
        doc_scores: logits of `p(z)`; None if each cache row is a text.
    """
    rows = hidden.shape[0] if doc_scores is None else len(doc_scores)
    active = jnp.ones(rows, bool) if active is None else active
    expansion = make_expansion(model, params, stop_ids, max_tokens, doc_scores)
    return search(cache, hidden, expansion, config, active)


@checked
def beam_search(
    model: Decoder | Bart,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    config: BeamConfig = BeamConfig(),
    batch_size: int = 16,
) -> list[list[tuple[list[int], float]]]:
    """Each prompt's likeliest continuations; the list-in, list-out way to use `search_beams`.

    Prompts, batches and forced tokens are as in `generate`, which agrees with
    `BeamConfig(1, early_stopping=True)`.

    Returns:
        For each prompt at most `config.num_beams` pairs, best first: the new tokens, without the
        stop token, and their score, in nats over `length ** length_penalty`.

    Raises:
        RagJaxError: as `generate` does, or the number of beams is below 1.
    """
    check_beams(config)
    check_prompts(model, prompts, max_tokens=max_tokens, batch_size=batch_size, stop_ids=stop_ids)
    results: list[list[tuple[list[int], float]]] = [[] for _ in prompts]
    settings = {"max_tokens": max_tokens, "stop_ids": tuple(map(int, stop_ids)), "config": config}
    for rows, arrays in batch_prompts(model, prompts, batch_size=batch_size):
        beams = fetch(_search_batch(model, params, *shard_batch(arrays), **settings))
        for b, i in enumerate(rows):
            results[i] = [
                (beams.tokens[b, w, : beams.lengths[b, w]].tolist(), float(beams.scores[b, w]))
                for w in beams.exists[b].nonzero()[0]
            ]
    return results


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "config"))
def _search_batch(model, params, tokens, mask, **settings) -> Beams:
    cache, hidden = read_prompts(model, params, tokens, mask)
    return search_beams(model, params, cache, hidden, active=mask.any(axis=1), **settings)
