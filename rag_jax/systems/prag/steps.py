"""The compiled step of answering: merges adapters, reads the prompts, writes the answers."""

from functools import partial

import jax
from jaxtyping import Array, Bool, Int, PyTree

from rag_jax import lora
from rag_jax.decoding.prompts import read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.models.nn.decoder import Decoder
from rag_jax.training.trainable import cast


@partial(jax.jit, static_argnames=("model", "scale", "max_tokens", "stop_ids"))
def answer_batch(
    model: Decoder,
    params: PyTree,
    bank: PyTree | None,
    chosen: Int[Array, "B k"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    scale: float,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Greedy answers and their lengths, each row with its own merged adapters.

    `W' = W + scale * sum_j A_j B_j` over the documents that a row has chosen (paper, eq. 6).

    Args:
        bank: adapters `[N, ...]`, or None for the base parameters.
        chosen: for each row positions in the bank; -1 for none.
    """
    if bank is not None:
        dtype = params["embed"]["embedding"].dtype
        merged = lora.merge(lora.select(cast(bank, dtype), chosen), scale=scale)
        params = lora.apply(params, merged, scale=1.0)
    cache, hidden = read_prompts(model, params, tokens, mask)
    active, limits = mask.any(axis=1), {"max_tokens": max_tokens, "stop_ids": stop_ids}
    decoded = decode(model, params, cache, hidden, **limits, active=active)
    return decoded.tokens, decoded.lengths
