"""The compiled steps of one pass, which share a cache: route, write or read knowledge, answer."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rag_jax.decoding.cache import Cache, append, grow, init_cache
from rag_jax.decoding.prompts import last_hidden
from rag_jax.decoding.sample import decode
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.sharding import constrain_rows


class Routed(NamedTuple):
    """What the model says at `<EOQ>`.

    Attributes:
        cache: the question.
        probabilities: `[B, S]`, `p_M(s | q)` over the source tokens alone.
        key: `[B, D]`, the hidden state at `<EOQ>` after the datastore's layer.
    """

    cache: Cache
    probabilities: Float[Array, "B S"]
    key: Float[Array, "B D"]


@partial(jax.jit, static_argnames=("model", "source_ids", "layer"))
def route(
    model: Decoder,
    params,
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
    params,
    cache: Cache,
    source_ids: Int[Array, "B"],
    active: Bool[Array, "B"],
    writing: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Cache, Int[Array, "B N"], Int[Array, "B"], Bool[Array, "B"]]:
    """Appends each row's source token; rows that are `writing` then write, greedily, knowledge up
    to `<EOK>` (left out) or the limit.

    Returns:
        The cache, `1 + max_tokens` slots longer; the knowledge, its lengths, and where `<EOK>` came
        in time.
    """
    output, cache = append(model, params, cache, source_ids[:, None], active[:, None])
    decoded = decode(
        model,
        params,
        cache,
        output.hidden[:, 0],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=writing,
    )
    return decoded.cache, decoded.tokens, decoded.lengths, decoded.finished


@partial(jax.jit, static_argnames="model")
def read(
    model: Decoder, params, cache: Cache, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Cache:
    """Appends the knowledge that was found; empty slots, at no cost, where no row has any."""
    return jax.lax.cond(
        mask.any(),
        lambda cache: append(model, params, cache, tokens, mask)[1],
        lambda cache: grow(cache, tokens.shape[1]),
        cache,
    )


@partial(jax.jit, static_argnames=("model", "cue", "max_tokens", "stop_ids"))
def answer(
    model: Decoder,
    params,
    cache: Cache,
    active: Bool[Array, "B"],
    *,
    cue: tuple[int, ...],
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Closes the knowledge with `<EOK>`, asks for the answer and writes it greedily."""
    tokens = jnp.tile(jnp.asarray(cue, jnp.int32), (active.shape[0], 1))
    output, cache = append(model, params, cache, tokens, jnp.tile(active[:, None], len(cue)))
    decoded = decode(
        model,
        params,
        cache,
        output.hidden[:, -1],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=active,
    )
    return decoded.tokens, decoded.lengths


@partial(jax.jit, static_argnames=("model", "cue_length"))
def score_answer(
    model: Decoder,
    params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    cue_length: int,
) -> Float[Array, "B"]:
    """`log p(answer | question, knowledge)` of given answers, which follow the cue in `tokens`."""
    output, _ = append(model, params, cache, tokens, mask)
    hidden = output.hidden[:, cue_length - 1 : -1]
    logits = model.apply({"params": params}, hidden, method="logits")
    logprobs = token_logprobs(logits, tokens[:, cue_length:])
    return (logprobs * mask[:, cue_length:]).sum(axis=-1)


@jax.jit
def pick_rows(cache: Cache, rows: Int[Array, "B"]) -> Cache:
    """The caches of some rows, in the order given."""
    return jax.tree.map(lambda leaf: constrain_rows(leaf[rows], len(rows), free=True), cache)


@jax.jit
def join_rows(parts: Sequence[Routed]) -> Routed:
    """The rows of several batches as one."""

    def join(*leaves):
        joined = jnp.concatenate(leaves)
        return constrain_rows(joined, len(joined), free=True)

    return jax.tree.map(join, *parts)
