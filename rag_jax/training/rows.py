"""Token sequences of which a loss is taken over some spans: rows, arrays, log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rag_jax.data.batches import pad_rows
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder


@dataclass(frozen=True)
class Row:
    """One training sequence.

    Attributes:
        tokens: the whole sequence.
        spans: for each loss term the half-open range of tokens that it is taken over.
    """

    id: str
    tokens: list[int]
    spans: dict[str, tuple[int, int]]


def pack_rows(
    rows: Sequence[Row],
    *,
    terms: Sequence[str],
    width: int,
    targets: int,
    batch: int,
    scale: float,
    reduction: str,
) -> dict[str, np.ndarray]:
    """Arrays of one microbatch; logits are needed at `targets` places a row, not at all of them.

    Args:
        rows: at most `batch`; the rest is padding without weight.
        terms: of the loss; a row may have a span for each.
        width: tokens a row is padded to.
        targets: loss positions a row is padded to.
        scale: weight of a row in the batch's loss.
        reduction: "mean" over a term's tokens, or "sum".

    Returns:
        `tokens` `[B, T]`, `mask` `[B, T]`; `at` `[B, P]`, the positions whose next token is
        predicted; `next` `[B, P]`, those tokens; and for each term its weights `[B, P]`.
    """
    tokens, mask = pad_rows([row.tokens for row in rows], width, pad_id=0, batch=batch)
    at = np.zeros((batch, targets), np.int32)
    weights = {term: np.zeros((batch, targets), np.float32) for term in terms}
    for r, row in enumerate(rows):
        place = 0
        for term, (start, stop) in row.spans.items():
            size = stop - start
            at[r, place : place + size] = np.arange(start - 1, stop - 1)
            per_token = scale / size if reduction == "mean" else scale
            weights[term][r, place : place + size] = per_token
            place += size
    next_tokens = np.take_along_axis(tokens, at + 1, axis=1)
    return {"tokens": tokens, "mask": mask, "at": at, "next": next_tokens, **weights}


def count_targets(row: Row) -> int:
    """How many tokens of the row are predicted in the loss."""
    return sum(stop - start for start, stop in row.spans.values())


def target_logprobs(model: Decoder, params, batch) -> Float[Array, "B P"]:
    """Log-probabilities of the tokens that the loss asks about, `batch["next"]`."""
    hidden = model.apply(
        {"params": params}, batch["tokens"], mask=batch["mask"], method="hidden"
    ).hidden
    picked = jnp.take_along_axis(hidden, batch["at"][:, :, None], axis=1)
    logits = model.apply({"params": params}, picked, method="logits")
    return token_logprobs(logits, batch["next"])
