"""The compiled steps of decoding (Lewis et al. 2020, section 2.5), which share one cache.

`read` reads each passage with its question, once; `write_token` decodes RAG-Token; `propose`
searches each document's answers for RAG-Sequence, and `score` gives the likelihood of any answer
under every document, on the cache that `read` left.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.decoding.beams import BeamConfig, Beams, has_probability
from rag_jax.decoding.cache import Cache, fork
from rag_jax.decoding.prompts import read_prompts
from rag_jax.decoding.score import score_text
from rag_jax.decoding.vocabulary_beams import search_beams
from rag_jax.losses import mix_documents
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED


class Candidates(NamedTuple):
    """The distinct answers that a question's documents proposed, without gaps.

    Attributes:
        tokens: `[B, C, T]`, the stop token included, padded with 0.
        lengths: `[B, C]`; 0 where a question has fewer answers.
        logprobs: `[B, K, C]`, `log p(y|x,z)` where `y` is among the beams of `z`, else `MASKED`.
    """

    tokens: Int[Array, "B C T"]
    lengths: Int[Array, "B C"]
    logprobs: Float[Array, "B K C"]


read = jax.jit(read_prompts, static_argnames="model")
mix = jax.jit(mix_documents)


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "config"))
def write_token(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    doc_scores: Float[Array, "B K"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    config: BeamConfig,
) -> Beams:
    """RAG-Token: beams over the mixture of all documents' next-token distributions.

    Args:
        doc_scores: logits of `p(z|x)`; `MASKED` for missing documents.
    """
    active = has_probability(doc_scores).any(axis=1)
    limits = {"max_tokens": max_tokens, "stop_ids": stop_ids, "config": config}
    weights = {"doc_scores": doc_scores, "active": active}
    return search_beams(model, params, cache, hidden, **limits, **weights)


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "config"))
def propose(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    doc_scores: Float[Array, "B K"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    config: BeamConfig,
) -> Candidates:
    """RAG-Sequence's candidates: the beams of every document alone, each answer once."""
    active = has_probability(doc_scores).reshape(-1)
    limits = {"max_tokens": max_tokens, "stop_ids": stop_ids, "config": config}
    beams = search_beams(model, params, cache, hidden, **limits, active=active)
    return unite(beams, docs=doc_scores.shape[1])


def unite(found: Beams, *, docs: int) -> Candidates:
    """The distinct answers among the beams of a question's documents.

    Args:
        found: of `R = B * docs` documents.
    """
    rows, beams, width = found.tokens.shape
    stopped = found.ends >= 0
    lengths = found.lengths + stopped
    # The stop token goes after the answer: [R, W, N] -> [R, W, N + 1].
    tokens = jnp.pad(found.tokens, ((0, 0), (0, 0), (0, 1)))
    at_end = jnp.arange(width + 1)[None, None] == found.lengths[..., None]
    tokens = jnp.where(at_end & stopped[..., None], found.ends[..., None], tokens)

    # Every question's answers together: [R, W, T] -> [B, K * W, T].
    tokens = tokens.reshape(rows // docs, docs * beams, width + 1)
    lengths, exists = (x.reshape(tokens.shape[:2]) for x in (lengths, found.exists))
    same = (tokens[:, :, None] == tokens[:, None]).all(axis=-1)
    same &= (lengths[:, :, None] == lengths[:, None]) & exists[:, :, None] & exists[:, None]
    first = exists & (jnp.argmax(same, axis=2) == jnp.arange(docs * beams)[None])
    order = jnp.argsort(~first, axis=1, stable=True)

    def pick(array):
        picked = jax.vmap(lambda row, places: row[places])(array, order)
        kept = jnp.take_along_axis(first, order, axis=1)
        return picked * kept.reshape(*kept.shape, *[1] * (array.ndim - 2))

    # Which of each document's beams is the answer; at most one is.
    given = pick(same.astype(jnp.int32)).reshape(*lengths.shape, docs, beams) > 0
    logprobs = jnp.where(given, found.logprobs.reshape(-1, 1, docs, beams), MASKED).max(axis=-1)
    return Candidates(pick(tokens), pick(lengths), logprobs.swapaxes(1, 2))


@partial(jax.jit, static_argnames=("model", "chunk"))
def score(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    tokens: Int[Array, "B C T"],
    lengths: Int[Array, "B C"],
    known: Float[Array, "B K C"] | None = None,
    *,
    chunk: int,
) -> Float[Array, "B K C"]:
    """`log p(y|x,z)` in nats of every answer under every document; `MASKED` for an empty answer.

    Args:
        cache: of the documents, from `read`.
        hidden: the states that predict the answers' first tokens.
        tokens: answers with their stop token, if one ended them, padded.
        lengths: of the answers; 0 for an empty answer.
        known: the log-probabilities that `propose` found; `MASKED` where an answer is to be scored.
        chunk: number of answers that go through the model together, a divisor of `C`. Chunks after
            the last answer that any document has to score are skipped.
    """
    questions, count, width = tokens.shape
    docs = hidden.shape[0] // questions
    if known is None:
        known = jnp.full((questions, docs, count), MASKED)
    wanted = (lengths > 0)[:, None] & ~has_probability(known)
    # A document's answers in its own order, those to be scored first.
    order = jnp.argsort(~wanted, axis=2, stable=True)
    tokens, lengths = (jax.vmap(lambda x, i: x[i])(x, order) for x in (tokens, lengths))
    logits = model.apply({"params": params}, hidden, method="logits")
    first = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1).reshape(questions, docs, -1)
    first = jnp.take_along_axis(first, tokens[..., 0], axis=2)
    forked = fork(model, cache, chunk)

    def more(state):
        return state[0] < wanted.sum(axis=2).max()

    def step(state):
        place, rest = state
        part = jax.lax.dynamic_slice_in_dim(tokens, place, chunk, axis=2).reshape(-1, width)
        size = jax.lax.dynamic_slice_in_dim(lengths, place, chunk, axis=2).reshape(-1, 1)
        mask = jnp.arange(width)[None] < size
        # The last token predicts nothing, so it is not read.
        read, at = (part[:, :-1], mask[:, :-1]), jnp.tile(jnp.arange(width - 1), (len(part), 1))
        logprobs = score_text(model, params, forked, *read, at, part[:, 1:], mask[:, 1:])
        logprobs = logprobs.reshape(questions, docs, chunk)
        return place + chunk, jax.lax.dynamic_update_slice_in_dim(rest, logprobs, place, axis=2)

    rest = jnp.zeros((questions, docs, count), jnp.float32)
    _, rest = jax.lax.while_loop(more, step, (jnp.int32(0), rest))
    found = jnp.take_along_axis(first + rest, jnp.argsort(order, axis=2), axis=2)
    return jnp.where(wanted, found, known)
