"""Both training stages, and what is trained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.data.batches import Microbatch
from rag_jax.models.vocabulary import put_tokens, take_tokens
from rag_jax.pipeline.runner import StageContext
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import DECODER_RULES, abstract_params, shard_batch, shard_params
from rag_jax.systems.srrag.examples import Example, make_examples, make_plan, pack
from rag_jax.systems.srrag.loss import sequence_logprobs, stage1_loss, stage2_loss
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.rows import count_targets
from rag_jax.training.trainable import apply_tuned, cast, init_tuned, tune

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session

# What is trained: all weights or an adapter, and the rows of the new tokens.


def start_trainable(session: "Session") -> Any:
    """The trained tree before the first step, in float32: small updates vanish in bfloat16."""
    return shard_params(_init_trainable(session, session.base.params), session.mesh, DECODER_RULES)


def describe_trainable(session: "Session") -> Any:
    """What `start_trainable` gives, as descriptions of arrays."""
    abstract = jax.eval_shape(partial(_init_trainable, session), session.base.params)
    return abstract_params(abstract, session.mesh, DECODER_RULES)


def _init_trainable(session: "Session", params: Any) -> Any:
    c = session.config
    tuned = init_tuned(c.tuning, params, seed=c.seed)
    tokens = take_tokens(params, session.new_ids)
    return {"model": tuned, "new_tokens": cast(tokens, jnp.float32)}


def assemble(
    trained: Any, frozen: Any, *, ids: Sequence[int], tuning: TuningConfig, dtype: Any
) -> Any:
    """The model's parameters, in `dtype`, from what is trained and what is not.

    The rows of the new tokens are trained in both modes, apart from the table, for they learn
    faster.

    Args:
        ids: the new tokens.
    """
    params = apply_tuned(tuning, trained["model"], frozen, dtype=dtype)
    return put_tokens(params, cast(trained["new_tokens"], dtype), ids)


def make_assembler(session: "Session") -> Callable[[Any, Any], Any]:
    """`assemble` by the run's settings."""
    dtype = jnp.dtype(session.config.model.dtype)
    return partial(assemble, ids=session.new_ids, tuning=session.config.tuning, dtype=dtype)


def make_losses(session: "Session") -> dict[str, Callable[..., Any]]:
    """Both stages' losses by the trained tree; "rows" serves both, so it is compiled once."""
    beta, join = session.config.stage2.beta, make_assembler(session)
    model = session.base.model.clone(remat=session.config.tuning.remat)

    def of_rows(trained, frozen, batch):
        return stage1_loss(model, join(trained, frozen), batch)

    def of_pairs(trained, frozen, batch):
        return stage2_loss(model, join(trained, frozen), batch, beta=beta)

    return {"rows": of_rows, "pairs": of_pairs}


def make_tuner(
    session: "Session", settings: TrainConfig, total_steps: int
) -> optax.GradientTransformation:
    """The optimiser of a stage; new tokens learn faster."""
    return optax.chain(
        make_optimizer(settings, total_steps),
        optax.masked(
            optax.scale(session.config.tuning.new_token_rate),
            lambda trained: {name: name == "new_tokens" for name in trained},
        ),
    )


def load_trainable(session: "Session", folder: Path) -> Any:
    """The trained tree that a stage saved."""
    return load_tree(folder, describe_trainable(session))


def load_tuned(session: "Session", folder: Path) -> Any:
    """The model's parameters after a stage."""
    trained = load_trainable(session, folder)
    return jax.jit(make_assembler(session))(trained, session.base.params)


def run_stage1(
    session: "Session", context: StageContext, *, closed_book: bool = False, writes: bool = True
) -> None:
    """Behaviour cloning of the source, the best verbalisation and the answer.

    Args:
        closed_book, writes: as for `make_examples`.
    """
    examples = make_examples(session, context, closed_book=closed_book, writes=writes)
    sources = [session.config.sources[e.source].name for e in examples]
    write_json(
        context.folder / "rows.json",
        {
            "questions": len(examples),
            "by_source": {s: sources.count(s) for s in sorted(set(sources))},
            "preference_pairs": sum(e.rejected is not None for e in examples),
            "longest": max(len(e.row.tokens) for e in examples),
        },
    )
    start = start_trainable(session)
    _clone(session, context, session.config.stage1, examples, start)


def run_stage1_again(session: "Session", context: StageContext) -> None:
    """In stage 2's place, with its settings: stage 1's loss goes on."""
    start = load_trainable(session, context.path("stage1", "params"))
    _clone(session, context, session.config.stage2, make_examples(session, context), start)


def run_reference(
    session: "Session",
    context: StageContext,
    *,
    stage1: str = "stage1",
    closed_book: bool = False,
) -> None:
    """Log-probabilities of both verbalisations under the stage-1 model, computed once."""
    examples = make_examples(session, context, closed_book=closed_book)
    plan = make_plan(session, examples, session.config.stage2)
    params = load_tuned(session, context.path(stage1, "params"))
    score = jax.jit(partial(sequence_logprobs, session.base.model))
    pairs = [i for i, e in enumerate(examples) if e.rejected]

    def run(batch: Sequence[int]) -> list[dict[str, Any]]:
        records = {}
        for micro in plan.group(batch):
            arrays = shard_batch(pack(session, examples, plan, micro, scale=1.0))
            values = fetch(score(params, arrays))
            for place, i in enumerate(micro.indices):
                both = {"chosen": values[place], "rejected": values[micro.rows + place]}
                records[i] = {"id": examples[i].row.id, **both}
        return [records[i] for i in batch]

    context.map_batches("reference.jsonl", pairs, run, batch_size=16, unit="pairs")


def run_stage2(
    session: "Session",
    context: StageContext,
    *,
    stage1: str = "stage1",
    reference: str = "reference",
    closed_book: bool = False,
) -> None:
    """Preference optimisation of the verbalisation, cloning of source and answer as before."""
    examples = make_examples(session, context, closed_book=closed_book)
    records = read_jsonl(context.path(reference, "reference.jsonl"))
    known = {r["id"]: (r["chosen"], r["rejected"]) for r in records}

    def finish(micro: Microbatch, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if micro.kind == "rows":  # the verbalisation is trained by preference alone
            return {**arrays, "verbalisation": np.zeros_like(arrays["verbalisation"])}
        values = np.zeros(2 * micro.rows, np.float32)
        for place, i in enumerate(micro.indices):
            values[[place, micro.rows + place]] = known[examples[i].row.id]
        # The rejected side takes part in the preference alone: its source token would count the
        # question twice.
        source = arrays["source"].copy()
        source[micro.rows :] = 0
        pair = source[: micro.rows].sum(axis=1)  # the source is one token, with a row's weight
        return {**arrays, "source": source, "reference": values, "pair": pair}

    start = load_trainable(session, context.path(stage1, "params"))
    _train(session, context, session.config.stage2, examples, start, finish)


def _clone(
    session: "Session",
    context: StageContext,
    settings: TrainConfig,
    examples: Sequence[Example],
    start: Any,
) -> None:
    """Trains with stage 1's loss."""
    examples = [replace(e, rejected=None) for e in examples]
    _train(session, context, settings, examples, start, lambda micro, arrays: arrays)


def _train(
    session: "Session",
    context: StageContext,
    settings: TrainConfig,
    examples: Sequence[Example],
    start: Any,
    finish: Callable[[Microbatch, dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> None:
    """Trains to the end, saves the trained tree as `params` and drops the checkpoints."""
    if (context.folder / "params").exists():
        return
    plan = make_plan(session, examples, settings)
    total = settings.epochs * plan.num_steps_per_epoch
    optimizer = make_tuner(session, settings, max(total, 1))
    step = make_step(session.losses, optimizer)
    frozen = None if session.config.tuning.mode == "full" else session.base.params

    def batch_at(number: int) -> tuple[list[tuple[str, Any]], list[str]]:
        batch = plan.examples_at(number)
        parts = []
        for micro in plan.group(batch):
            arrays = pack(session, examples, plan, micro, scale=1 / len(batch))
            parts.append((micro.kind, shard_batch(finish(micro, arrays))))
        return parts, [examples[i].row.id for i in batch]

    # Through the layers there and back, and once more for the gradients of all weights.
    passes = 3 if session.config.tuning.mode == "full" else 2

    def flops_at(number: int) -> float:
        chosen = [examples[i] for i in plan.examples_at(number)]
        rows = [row for e in chosen for row in (e.row, e.rejected) if row]
        tokens, targets = sum(len(r.tokens) for r in rows), sum(map(count_targets, rows))
        return passes * session.base.config.count_flops(tokens, targets)

    tune(
        context,
        init_state(start, optimizer),
        lambda state, parts: step(state, frozen, parts),
        batch_at,
        total_steps=total,
        checkpoint_every=settings.checkpoint_every,
        flops_at=flops_at,
        profile_steps=session.config.profile_steps,
    )
