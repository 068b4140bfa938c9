"""Training of a language model on rows of text, by the spans that it is to say."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.sharding import DECODER_RULES, count_data_rows, shard_batch, shard_params
from rag_jax.training.loop import LossFunction, init_state, make_optimizer, make_step
from rag_jax.training.rows import Row, count_targets, pack_rows
from rag_jax.training.trainable import init_tuned, tune

# Tokens that could be trained on while one program compiles, measured on two CPU cores.
PROGRAM_TOKENS = 1600


def tune_rows(
    context: StageContext,
    rows: Sequence[Row],
    loss: LossFunction,
    *,
    base: Pretrained,
    mesh: Mesh,
    tuning: TuningConfig,
    settings: TrainConfig,
    terms: Sequence[str],
    strata: Sequence[int],
    seed: int,
    profile_steps: int = 0,
) -> None:
    """Trains on rows to the end within a stage, from where an interrupted call stopped.

    The trained tree is then `params` in the stage's folder; where it is there, nothing is done.

    Args:
        loss: by the trained tree, on the arrays that `pack_rows` gives with these `terms`: each
            row's terms are means over their tokens, weighted so that a batch's rows make a mean.
        base: the model before; its parameters are what an adapter lies over.
        strata: for each row its stratum, of which every batch has its share.
    """
    if (context.folder / "params").exists():
        return
    plan = BatchPlan(
        [len(row.tokens) for row in rows],
        kinds=["rows"] * len(rows),
        strata=strata,
        batch_size=settings.batch_size,
        budget=settings.microbatch_tokens,
        program_tokens=PROGRAM_TOKENS,
        seed=seed,
        row_multiple=count_data_rows(),
    )
    most: dict[tuple[str, int], int] = defaultdict(int)
    for i, row in enumerate(rows):
        most[plan.place(i)] = max(most[plan.place(i)], count_targets(row))
    total = settings.epochs * plan.num_steps_per_epoch
    optimizer = make_optimizer(settings, max(total, 1))
    step = make_step({"rows": loss}, optimizer)
    frozen = None if tuning.mode == "full" else base.params
    passes = 3 if tuning.mode == "full" else 2

    def batch_at(number: int) -> tuple[list[tuple[str, Any]], list[str]]:
        chosen, parts = plan.examples_at(number), []
        for micro in plan.group(chosen):
            arrays = pack_rows(
                [rows[i] for i in micro.indices],
                terms=terms,
                width=micro.width,
                targets=round_up(most[micro.kind, micro.width], 16),
                batch=micro.rows,
                scale=1 / len(chosen),
                reduction="mean",
            )
            parts.append((micro.kind, shard_batch(arrays)))
        return parts, [rows[i].id for i in chosen]

    def flops_at(number: int) -> float:
        chosen = [rows[i] for i in plan.examples_at(number)]
        tokens, targets = sum(len(r.tokens) for r in chosen), sum(map(count_targets, chosen))
        return passes * base.config.count_flops(tokens, targets)

    start = init_tuned(tuning, base.params, seed=seed)
    tune(
        context,
        init_state(shard_params(start, mesh, DECODER_RULES), optimizer),
        lambda state, parts: step(state, frozen, parts),
        batch_at,
        total_steps=total,
        checkpoint_every=settings.checkpoint_every,
        flops_at=flops_at,
        profile_steps=profile_steps,
    )
