"""Both training stages, and the reference's log-probabilities between them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Array, Float, PyTree

from rag_jax.config import TrainConfig
from rag_jax.data.packing import Microbatch, Packing
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.srrag import steps
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.systems.srrag.data import Example, pack_examples, plan_examples
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import count_step_flops
from rag_jax.training.trainable import Trainable

MakeExamples = Callable[..., list[Example]]  # `data.make_examples` of a run
FitExamples = Callable[..., None]  # `fit_examples` of a run
Arrays = dict[str, np.ndarray]
Finish = Callable[[Packing, Microbatch, Arrays], Arrays]


def fit_examples(
    context: StageContext,
    examples: Sequence[Example],
    settings: TrainConfig,
    *,
    base: Pretrained,
    trainable: Trainable,
    losses: Mapping[str, LossFunction],
    reduction: str,
    seed: int,
    profile_steps: int,
    start: PyTree[Array] | None = None,
    finish: Finish = lambda packing, micro, arrays: arrays,
) -> None:
    """Trains on examples to the end; see `fit`.

    Args:
        reduction: of a term over its tokens, "sum" or "mean".
        start: the trained tree to start from; a fresh one if None.
        finish: changes a microbatch's arrays.
    """
    plan, packing = plan_examples(examples, settings, base.config, seed=seed)
    ids, full = [example.row.id for example in examples], trainable.frozen is None

    def pack(step: int, chosen: list[int]) -> Batch:
        del step
        weights = {"scale": 1 / len(chosen), "reduction": reduction}
        microbatches = []
        for micro in packing.group(chosen):
            arrays = pack_examples(examples, packing, micro, **weights)
            microbatches.append((micro.kind, finish(packing, micro, arrays)))
        rows = [row for i in chosen for row in examples[i].rows]
        return Batch(microbatches, count_step_flops(base.config, rows, full=full))

    options = {"ids": ids, "start": start, "profile_steps": profile_steps}
    folder, progress = context.folder, context.progress
    fit(plan, pack, losses, trainable, settings, folder, progress, **options)


def run_stage1(
    context: StageContext,
    *,
    make_examples: MakeExamples,
    sources: Sequence[SourceConfig],
    stage1: TrainConfig,
    fit_examples: FitExamples,
    closed_book: bool = False,
    writes: bool = True,
) -> None:
    """Behaviour cloning of the source, the best verbalisation and the answer."""
    examples = make_examples(context, closed_book=closed_book, writes=writes)
    names = [sources[example.source].name for example in examples]
    facts = {
        "questions": len(examples),
        "by_source": {name: names.count(name) for name in sorted(set(names))},
        "preference_pairs": sum(e.rejected is not None for e in examples),
        "longest": max(len(e.row.tokens) for e in examples),
    }
    write_json(context.folder / "rows.json", facts)
    fit_examples(context, [replace(e, rejected=None) for e in examples], stage1)


def run_stage1_again(
    context: StageContext,
    *,
    make_examples: MakeExamples,
    stage2: TrainConfig,
    fit_examples: FitExamples,
    trainable: Trainable,
    after: str = "stage1",
    closed_book: bool = False,
    writes: bool = True,
) -> None:
    """Continues with stage 1's loss in the place of stage 2, with stage 2's settings.

    Args:
        after: the stage that trained the model to start from.
    """
    examples = make_examples(context, closed_book=closed_book, writes=writes)
    examples = [replace(e, rejected=None) for e in examples]
    start = trainable.load(context.path(after, "params"))
    fit_examples(context, examples, stage2, start=start)


def run_reference(
    context: StageContext,
    *,
    make_examples: MakeExamples,
    stage2: TrainConfig,
    base: Pretrained,
    trainable: Trainable,
    loss_reduction: str,
    seed: int,
    after: str = "stage1",
    closed_book: bool = False,
) -> None:
    """Log-probabilities of both verbalisations under the stage-1 model, computed once."""
    examples = make_examples(context, closed_book=closed_book)
    _, packing = plan_examples(examples, stage2, base.config, seed=seed)
    params = trainable.load_merged(context.path(after, "params"))
    pairs = [i for i, e in enumerate(examples) if e.rejected]

    def score(batch: Sequence[int]) -> list[dict[str, Any]]:
        records = {}
        for micro in packing.group(batch):
            options = {"scale": 1.0, "reduction": loss_reduction}
            arrays = pack_examples(examples, packing, micro, **options)
            rows = 2 * packing.shapes[micro.kind].items
            inputs = base.model, params, shard_batch(arrays)
            values = fetch(steps.score_verbalisations(*inputs, rows=rows))
            for b, place, i in _list_places(micro):
                chosen, rejected = values[b, 2 * place : 2 * place + 2]
                records[i] = {"id": examples[i].row.id, "chosen": chosen, "rejected": rejected}
        return [records[i] for i in batch]

    context.map("reference.jsonl", pairs, score, batch_size=count_scored(stage2), unit="pairs")


def count_scored(stage2: TrainConfig) -> int:
    """Number of pairs that are scored together under the reference: a step's, or more."""
    return max(16, stage2.batch_size)


def run_stage2(
    context: StageContext,
    *,
    make_examples: MakeExamples,
    stage2: TrainConfig,
    fit_examples: FitExamples,
    trainable: Trainable,
    after: str = "stage1",
    reference: str = "reference",
    closed_book: bool = False,
) -> None:
    """Preference optimisation of the verbalisation; source and answer are cloned as before.

    Args:
        after: the stage that trained the model to start from.
        reference: the stage with the model's log-probabilities.
    """
    examples = make_examples(context, closed_book=closed_book)
    records = read_jsonl(context.path(reference, "reference.jsonl"))
    known = {r["id"]: (r["chosen"], r["rejected"]) for r in records}

    def add_reference(packing: Packing, micro: Microbatch, arrays: Arrays) -> Arrays:
        if micro.kind == "rows":  # the verbalisation is trained by preference alone
            return {**arrays, "verbalisation": np.zeros_like(arrays["verbalisation"])}
        values = np.zeros((micro.rows, packing.shapes[micro.kind].items, 2), np.float32)
        for b, place, i in _list_places(micro):
            values[b, place] = known[examples[i].row.id]
        return make_pairs(arrays, values.reshape(micro.rows, -1))

    start = trainable.load(context.path(after, "params"))
    fit_examples(context, examples, stage2, start=start, finish=add_reference)


def _list_places(micro: Microbatch) -> Iterator[tuple[int, int, int]]:
    """For each example its sequence, its number in the sequence, and itself."""
    for b, sequence in enumerate(micro.sequences):
        for place, i in enumerate(sequence):
            yield b, place, i


def make_pairs(arrays: Arrays, reference: Float[np.ndarray, "B R"]) -> Arrays:
    """A microbatch's arrays for the preference loss; see `loss.stage2_loss`.

    Args:
        arrays: from `data.pack_examples`, of pairs.
        reference: log-probabilities of the verbalisations under the stage-1 model.
    """
    # The rejected side takes part in the preference alone: its source token would count the
    # question twice.
    source = arrays["source"] * (arrays["row"] % 2 == 0)
    # The source is one token, with a row's weight.
    places = arrays["row"][..., None] == np.arange(0, reference.shape[1], 2)
    pair = (source[..., None] * places).sum(axis=1, dtype=np.float32)
    return {**arrays, "source": source, "reference": reference, "pair": pair}
