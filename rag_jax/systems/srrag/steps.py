"""The compiled steps: scoring before training, and the pass: route, write or read, answer.

The steps of a pass share one cache, so nothing is read twice.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, append, fork, grow, init_cache
from rag_jax.decoding.prompts import last_hidden
from rag_jax.decoding.sample import count_compacted, decode
from rag_jax.decoding.score import score_continuation, score_text
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.sharding import constrain_rows
from rag_jax.systems.srrag.loss import sequence_logprobs

# `log p(verbalisation | question)` of a batch's rows, for the reference of stage 2.
score_verbalisations = jax.jit(sequence_logprobs, static_argnames=("model", "rows"))


@partial(jax.jit, static_argnames="model")
def score_contexts(
    model: Decoder,
    params: PyTree,
    prefix: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    at: Int[Array, "B P"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
) -> Float[Array, "B"]:
    """`log p(answer | prompt)` in nats of the untrained model, for prompts after a shared prefix.

    Args:
        tokens: prompt and answer; `at`, `targets` and `weights` as for `score_text`.
    """
    dtype = params["embed"]["embedding"].dtype
    cache = init_cache(model, tokens.shape[0], dtype=dtype, prefix=prefix)
    return score_text(model, params, cache, tokens, mask, at, targets, weights)


class Routed(NamedTuple):
    """The model's state at `<EOQ>`.

    Attributes:
        cache: of the questions.
        probabilities: `[B, S]`, `p_M(s | q)` over the source tokens alone.
        key: `[B, D]`, the hidden state at `<EOQ>` after the datastore's layer.
    """

    cache: Cache
    probabilities: Float[Array, "B S"]
    key: Float[Array, "B D"]


@partial(jax.jit, static_argnames=("model", "source_ids", "layer"))
def route(
    model: Decoder,
    params: PyTree,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    source_ids: tuple[int, ...],
    layer: int,
) -> Routed:
    """Reads the questions up to `<EOQ>`."""
    cache = init_cache(model, tokens.shape[0], dtype=params["embed"]["embedding"].dtype)
    output, cache = append(model, params, cache, tokens, mask, return_layer=layer)
    logits = model.apply({"params": params}, last_hidden(output.hidden, mask), method="logits")
    chosen = logits[:, jnp.asarray(source_ids)].astype(jnp.float32)
    return Routed(cache, jax.nn.softmax(chosen, axis=-1), last_hidden(output.layer_output, mask))


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def verbalise(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    source_ids: Int[Array, "B"],
    active: Bool[Array, "B"],
    writing: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Cache, Int[Array, "B N"], Int[Array, "B"], Bool[Array, "B"]]:
    """Appends each row's source token; rows that are `writing` then write knowledge, greedily.

    Args:
        source_ids: the token of each row's source.
        writing: rows that write, up to `<EOK>` or the limit.

    Returns:
        The cache, `1 + max_tokens` slots longer; the knowledge without `<EOK>`; its lengths; and
        False where the limit cut the knowledge off.
    """
    output, cache = append(model, params, cache, source_ids[:, None], active[:, None])
    hidden, limits = output.hidden[:, 0], {"max_tokens": max_tokens, "stop_ids": stop_ids}
    limits["compact_to"] = count_compacted(len(writing))
    decoded = decode(model, params, cache, hidden, **limits, active=writing)
    return decoded.cache, decoded.tokens, decoded.lengths, decoded.finished


@partial(jax.jit, static_argnames="model")
def read(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Cache:
    """Appends retrieved knowledge; only empty slots, at no cost, if no row has any."""

    def fill(cache: Cache) -> Cache:
        return append(model, params, cache, tokens, mask)[1]

    return jax.lax.cond(mask.any(), fill, lambda cache: grow(cache, tokens.shape[1]), cache)


@partial(jax.jit, static_argnames=("model", "cue", "max_tokens", "stop_ids"))
def answer(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    active: Bool[Array, "B"],
    *,
    cue: tuple[int, ...],
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"], Float[Array, "B"]]:
    """Closes the knowledge, reads the cue and writes the answers greedily.

    Args:
        cue: tokens from `<EOK>` to the answer.

    Returns:
        The answers, their lengths and their likelihoods; see `Decoded`.
    """
    tokens = jnp.tile(jnp.asarray(cue, jnp.int32), (active.shape[0], 1))
    cache = fork(model, cache, 1)  # a longer cache would be a copy of it
    output, cache = append(model, params, cache, tokens, jnp.tile(active[:, None], len(cue)))
    hidden, limits = output.hidden[:, -1], {"max_tokens": max_tokens, "stop_ids": stop_ids}
    limits["compact_to"] = count_compacted(len(active))
    decoded = decode(model, params, cache, hidden, **limits, active=active)
    return decoded.tokens, decoded.lengths, decoded.likelihoods


@partial(jax.jit, static_argnames=("model", "cue_length"))
def score_answer(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    cue_length: int,
) -> Float[Array, "B"]:
    """`log p(answer | question, knowledge)` in nats of answers that follow the cue in `tokens`."""
    return score_continuation(model, params, cache, tokens, mask, given=cue_length)


@jax.jit
def pick_rows(cache: Cache, rows: Int[Array, "B"]) -> Cache:
    """The caches of some rows, in the order of `rows`."""
    return jax.tree.map(lambda leaf: constrain_rows(leaf[rows], len(rows), free=True), cache)


@jax.jit
def join_rows(parts: Sequence[Routed]) -> Routed:
    """The rows of several batches as one batch."""

    def join(*leaves):
        joined = jnp.concatenate(leaves)
        return constrain_rows(joined, len(joined), free=True)

    return jax.tree.map(join, *parts)
