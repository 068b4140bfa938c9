"""The compiled step of answering: merges adapters, reads the prompts, writes the answers."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax import lora
from rag_jax.decoding.prompts import read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.models.nn.decoder import Decoder
from rag_jax.training.trainable import cast


@partial(jax.jit, static_argnames=("model", "scale", "merge", "max_tokens", "stop_ids"))
def answer_batch(
    model: Decoder,
    params: PyTree,
    bank: PyTree | None,
    chosen: Int[Array, "B k"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    scale: float,
    merge: str,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"], Float[Array, "B"]]:
    """Greedy answers, their lengths and likelihoods, each row with its own merged adapters.

    Likelihoods are those of `Decoded`.

    `W' = W + scale * sum_j A_j B_j` over the documents that a row has chosen (paper, eq. 6).

    Args:
        bank: adapters `[N, ...]`, or None for the base parameters.
        chosen: for each row positions in the bank; -1 for none.
        merge: "sum", or "mean" over the documents of each row.
    """
    if bank is not None:
        dtype = params["embed"]["embedding"].dtype
        weights = weigh_documents(chosen, merge=merge)
        merged = lora.merge(lora.select(cast(bank, dtype), chosen), scale=scale, weights=weights)
        params = lora.apply(params, merged, scale=1.0)
    cache, hidden = read_prompts(model, params, tokens, mask)
    active, limits = mask.any(axis=1), {"max_tokens": max_tokens, "stop_ids": stop_ids}
    decoded = decode(model, params, cache, hidden, **limits, active=active)
    return decoded.tokens, decoded.lengths, decoded.likelihoods


def weigh_documents(chosen: Int[Array, "B k"], *, merge: str) -> Float[Array, "B k"]:
    """Weights of each row's adapters: 1 for a "sum", 1 over the row's documents for a "mean"."""
    given = (chosen >= 0).astype(jnp.float32)
    return given if merge == "sum" else given / jnp.maximum(given.sum(axis=1, keepdims=True), 1)
