"""Training rows: token sequences whose loss is taken over spans of them.

`pack_rows` makes a microbatch's arrays, `target_logprobs` the log-probabilities that a loss weighs,
and `fit_rows` trains on rows from first to last.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rag_jax.config import ConstantTrainConfig
from rag_jax.data.batches import BatchPlan, pad_rows, round_up
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.runtime.progress import Progress
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable

# How many tokens could be trained on while one program compiles, measured on two CPU cores.
PROGRAM_TOKENS = 1600


@dataclass(frozen=True)
class Row:
    """One training sequence; `spans` are the half-open ranges of each loss term's target tokens."""

    id: str
    tokens: list[int]
    spans: dict[str, tuple[int, int]]

    @property
    def num_targets(self) -> int:
        """Number of tokens that the loss is taken over."""
        return sum(stop - start for start, stop in self.spans.values())


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
    """The arrays of one microbatch; logits are computed at `targets` positions of a row alone.

    Args:
        rows: at most `batch`; missing rows are padding with weight 0.
        terms: of the loss; a row may have a span for each.
        width: number of tokens T that a row is padded to.
        targets: number of target positions P that a row is padded to.
        scale: weight of a row in the batch's loss.
        reduction: "mean" over a term's tokens, or "sum".

    Returns:
        `tokens` `[B, T]`, `mask` `[B, T]`; `at` `[B, P]`, the positions whose next token is
        predicted; `next` `[B, P]`, those next tokens; and for each term its weights `[B, P]`.
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


def target_logprobs(
    model: Decoder, params: PyTree, batch: Mapping[str, Array]
) -> Float[Array, "B P"]:
    """Log-probabilities in nats of the target tokens, `batch["next"]`, of a `pack_rows` batch."""
    tokens, mask, at = batch["tokens"], batch["mask"], batch["at"]
    hidden = model.apply({"params": params}, tokens, mask=mask, method="hidden").hidden
    picked = jnp.take_along_axis(hidden, at[:, :, None], axis=1)  # [B, T, D] -> [B, P, D]
    logits = model.apply({"params": params}, picked, method="logits")
    return token_logprobs(logits, batch["next"])


def count_step_flops(config: DecoderConfig, rows: Iterable[Row], *, full: bool) -> float:
    """Number of operations of the matrix products of a training step on `rows`.

    There is one pass forward, one for the gradients of activations, and if all weights are trained
    (`full`) one for the gradients of weights.
    """
    rows = list(rows)
    tokens, targets = sum(len(r.tokens) for r in rows), sum(r.num_targets for r in rows)
    return (3 if full else 2) * config.count_flops(tokens, targets)


def plan_rows(
    rows: Sequence[Row], settings: ConstantTrainConfig, *, strata: Sequence[int], seed: int
) -> BatchPlan:
    """Which rows make a step's batch and which of those a microbatch.

    `strata` are the rows' strata, of each of which every batch has its share.
    """
    return BatchPlan(
        [len(row.tokens) for row in rows],
        kinds=["rows"] * len(rows),
        strata=strata,
        batch_size=settings.batch_size,
        budget=settings.microbatch_tokens,
        program_tokens=PROGRAM_TOKENS,
        seed=seed,
        row_multiple=count_data_rows(),
    )


def widest_targets(plan: BatchPlan, rows: Mapping[int, Sequence[Row]]) -> dict[Any, int]:
    """The number of target positions that microbatches are padded to, by their kind and width.

    `rows` are the rows of each example of the plan.
    """
    most: dict[tuple[str, int], int] = defaultdict(int)
    for i, example in rows.items():
        most[plan.place(i)] = max(most[plan.place(i)], *(row.num_targets for row in example))
    return {place: round_up(count, 16) for place, count in most.items()}


def fit_rows(
    rows: Sequence[Row],
    loss: LossFunction,
    trainable: Trainable,
    settings: ConstantTrainConfig,
    folder: Path,
    progress: Progress,
    *,
    config: DecoderConfig,
    terms: Sequence[str],
    strata: Sequence[int],
    seed: int,
    start: PyTree[Array] | None = None,
    steps: int | None = None,
    profile_steps: int = 0,
) -> None:
    """Trains on rows to the end; see `fit`, which takes `start` and `steps`.

    The loss is taken of the arrays that `pack_rows` makes with these `terms`. A row's term is the
    mean over the term's tokens, and a batch's loss the mean over its rows. `config` is the model's,
    for counting operations.
    """
    plan = plan_rows(rows, settings, strata=strata, seed=seed)
    targets = widest_targets(plan, {i: [row] for i, row in enumerate(rows)})

    def pack(step: int, chosen: list[int]) -> Batch:
        del step
        microbatches = []
        for micro in plan.group(chosen):
            arrays = pack_rows(
                [rows[i] for i in micro.indices],
                terms=terms,
                width=micro.width,
                targets=targets[micro.kind, micro.width],
                batch=micro.rows,
                scale=1 / len(chosen),
                reduction="mean",
            )
            microbatches.append((micro.kind, arrays))
        full = trainable.frozen is None
        return Batch(microbatches, count_step_flops(config, (rows[i] for i in chosen), full=full))

    fit(
        plan,
        pack,
        {"rows": loss},
        trainable,
        settings,
        folder,
        progress,
        ids=[row.id for row in rows],
        start=start,
        steps=steps,
        profile_steps=profile_steps,
    )
