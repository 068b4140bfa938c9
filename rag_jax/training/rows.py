"""Training rows: token sequences whose loss is taken over spans of them.

`pack_rows` makes a microbatch's arrays, `target_logprobs` the log-probabilities that a loss weighs,
and `fit_rows` trains on rows from first to last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.config import ConstantTrainConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.data.packing import Packing, Sequences, Size
from rag_jax.losses import hidden_logprobs
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.progress import Progress
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.training.fit import Batch, Hook, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable

PROGRAM_TOKENS = 1600  # on CPU, see `ConstantTrainConfig`
_SAMPLED = 32  # steps on which the shapes of microbatches are chosen


@dataclass(frozen=True)
class Row:
    """One training sequence; `spans` are the half-open ranges of each loss term's target tokens.

    Raises:
        RagJaxError: a span is empty, ends after the tokens, or begins with the first one, which
            nothing before it predicts.
    """

    id: str
    tokens: Sequence[int]
    spans: dict[str, tuple[int, int]]

    def __post_init__(self):
        for name, (start, stop) in self.spans.items():
            if not 1 <= start < stop <= len(self.tokens):
                raise RagJaxError(
                    f"row {self.id}: span {name}={(start, stop)} of {len(self.tokens)} tokens: "
                    "must begin at 1 or later, end at the last token or before, and not be empty"
                )

    @property
    def num_targets(self) -> int:
        """Number of tokens that the loss is taken over."""
        return sum(stop - start for start, stop in self.spans.values())


def pack_rows(
    sequences: Sequence[Sequence[Row]],
    *,
    terms: Sequence[str],
    width: int,
    targets: int,
    batch: int,
    scale: float,
    reduction: str,
) -> dict[str, np.ndarray]:
    """The arrays of one microbatch; logits are computed at `targets` positions of a sequence alone.

    Args:
        sequences: the rows of each sequence, one after the other; at most `batch` sequences.
        terms: of the loss; a row may have a span for each.
        width: number of tokens T that a sequence is padded to.
        targets: number of target positions P that a sequence is padded to.
        scale: weight of a row in the batch's loss.
        reduction: "mean" over a term's tokens, or "sum".

    Returns:
        `tokens` `[B, T]`; `segments` `[B, T]`, the number of each token's row in its sequence, from
        1 on, and 0 on padding; `positions` `[B, T]` within the rows; `at` `[B, P]`, the positions
        whose next token is predicted; `next` `[B, P]`, those next tokens; `row` `[B, P]`, the row
        of each target in its sequence, from 0 on; and for each term its weights `[B, P]`.

    Raises:
        RagJaxError: the rows of a sequence are longer than `width`.
    """
    texts = Sequences(batch, width)
    at, of = np.zeros((2, batch, targets), np.int32)
    weights = {term: np.zeros((batch, targets), np.float32) for term in terms}
    for b, rows in enumerate(sequences):
        place = 0
        for number, row in enumerate(rows):
            begin = texts.add(b, row.tokens)
            for term, (start, stop) in row.spans.items():
                size = stop - start
                part = slice(place, place + size)
                at[b, part] = np.arange(begin + start - 1, begin + stop - 1)
                of[b, part] = number
                weights[term][b, part] = scale / size if reduction == "mean" else scale
                place += size
    tokens, segments, positions = texts.list_arrays()
    following = np.take_along_axis(tokens, at + 1, axis=1)
    arrays = {"tokens": tokens, "segments": segments, "positions": positions}
    return {**arrays, "at": at, "next": following, "row": of, **weights}


def target_logprobs(
    model: Decoder, params: PyTree, batch: Mapping[str, Array]
) -> Float[Array, "B P"]:
    """Log-probabilities in nats of the target tokens, `batch["next"]`, of a `pack_rows` batch."""
    tokens, at = batch["tokens"], batch["at"]
    texts = {name: batch[name] for name in ("segments", "positions")}
    hidden = model.apply({"params": params}, tokens, **texts, method="hidden").hidden
    picked = jnp.take_along_axis(hidden, at[:, :, None], axis=1)  # [B, T, D] -> [B, P, D]
    to_logits = partial(model.apply, {"params": params}, method="logits")
    vocab_size = model.config.vocab_size
    return hidden_logprobs(to_logits, picked, batch["next"], vocab_size=vocab_size)


def sum_rows(
    values: Float[Array, "B P"], row: Int[Array, "B P"], count: int
) -> Float[Array, "B R"]:
    """The sum of the targets' values for each of the first `count` (R) rows of a sequence."""
    return jnp.einsum("bp,bpr->br", values, jax.nn.one_hot(row, count, dtype=values.dtype))


def count_step_flops(config: DecoderConfig, rows: Iterable[Row], *, full: bool) -> float:
    """Number of operations of the matrix products of a training step on `rows`.

    There is one pass forward, one for the gradients of activations, and if all weights are trained
    (`full`) one for the gradients of weights.
    """
    rows = list(rows)
    tokens, targets = sum(len(r.tokens) for r in rows), sum(r.num_targets for r in rows)
    return (3 if full else 2) * config.count_flops(tokens, targets)


def plan_packing(
    examples: Sequence[Sequence[Row]],
    plan: BatchPlan,
    settings: ConstantTrainConfig,
    config: DecoderConfig,
    *,
    kinds: Sequence[str],
) -> Packing:
    """How the rows of each step's examples share sequences; `kinds` as for `Packing`."""
    sizes = [
        Size(sum(len(row.tokens) for row in rows), sum(row.num_targets for row in rows))
        for rows in examples
    ]
    batches = [plan.examples_at(step) for step in list_sampled(plan)]
    return Packing(sizes, kinds=kinds, batches=batches, **list_costs(plan, settings, config))


def plan_rows(
    rows: Sequence[Row],
    settings: ConstantTrainConfig,
    config: DecoderConfig,
    *,
    strata: Sequence[int],
    seed: int,
) -> tuple[BatchPlan, Packing]:
    """Which rows make a step's batch, and which of those share a sequence; see `fit_rows`."""
    plan = BatchPlan(strata, batch_size=settings.batch_size, seed=seed)
    kinds = [""] * len(rows)
    return plan, plan_packing([[row] for row in rows], plan, settings, config, kinds=kinds)


def list_sampled(plan: BatchPlan) -> range:
    """The steps on which the shapes of microbatches are chosen."""
    return range(min(_SAMPLED, plan.num_steps_per_epoch))


def list_costs(
    plan: BatchPlan, settings: ConstantTrainConfig, config: DecoderConfig | BartConfig
) -> dict[str, Any]:
    """The arguments of `choose_shapes` that do not depend on the examples."""
    return {
        "budget": settings.microbatch_tokens,
        "steps": max(1, settings.epochs) * plan.num_steps_per_epoch,
        "slot_cost": config.slot_flops / config.count_flops(1, 0),
        "program_tokens": count_program_tokens(settings.program_tokens, on_cpu=PROGRAM_TOKENS),
        "multiple": count_data_rows(),
    }


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
    make_hook: Callable[..., Hook] | None = None,
    profile_steps: int = 0,
) -> None:
    """Trains on rows to the end; see `fit`, which takes `start` and `steps`.

    The loss is taken of the arrays that `pack_rows` makes with these `terms`. A row's term is the
    mean over the term's tokens, and a batch's loss the mean over its rows.

    Args:
        config: the model's, for counting operations.
        make_hook: makes a hook from the number of steps of an epoch.
    """
    plan, packing = plan_rows(rows, settings, config, strata=strata, seed=seed)
    full = trainable.frozen is None

    def pack(step: int, chosen: list[int]) -> Batch:
        del step
        weights = {"terms": terms, "scale": 1 / len(chosen), "reduction": "mean"}
        microbatches = []
        for micro in packing.group(chosen):
            targets = packing.shapes[micro.kind].targets
            sizes = {"width": micro.width, "targets": targets, "batch": micro.rows}
            sequences = [[rows[i] for i in sequence] for sequence in micro.sequences]
            microbatches.append(("rows", pack_rows(sequences, **sizes, **weights)))
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
        hook=None if make_hook is None else make_hook(steps=plan.num_steps_per_epoch),
        profile_steps=profile_steps,
    )
