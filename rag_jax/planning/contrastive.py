"""A contrastive training: its batches, of pairs drawn by their lengths, and its programs."""

from typing import Any

import numpy as np
from jaxtyping import PyTree

from rag_jax.config import ContrastiveConfig
from rag_jax.planning.batches import Corpus, Shape, StageBatches, choose_drawn
from rag_jax.planning.planner import Planner
from rag_jax.planning.training import compile_training
from rag_jax.retrieval.contrastive import (
    Encoders,
    PairBatches,
    make_loss,
    make_trainable,
)
from rag_jax.retrieval.pairs import Pair


def draw_pairs(
    settings: ContrastiveConfig, corpus: Corpus, *, max_length: int, kept: int, seed: int
) -> PairBatches:
    """Pairs of a question and a passage of drawn lengths, without their tokens.

    Args:
        kept: number of hard negatives of a question.
    """
    rng, draw = np.random.default_rng(seed), corpus.lengths.draw
    count, settings = choose_drawn(settings, corpus.trained)
    pool = min(corpus.passages, max(count, 1 + kept))
    questions = np.minimum(draw("query", count, rng), max_length).tolist()
    passages = np.minimum(draw("text", pool, rng), max_length).tolist()

    def make(i: int) -> Pair:
        positive, *others = (rng.integers(pool, size=1 + kept)).tolist()
        wrong = tuple(row for row in others if row != positive)
        return Pair(str(i), i, positive, wrong, frozenset({positive}))

    return PairBatches(
        [make(i) for i in range(count)],
        [range(length) for length in questions],
        {row: range(length) for row, length in enumerate(passages)},
        settings,
        seed,
    )


def count_pairs(
    stage: str,
    settings: ContrastiveConfig,
    corpus: Corpus,
    *,
    max_length: int,
    kept: int,
    seed: int,
) -> StageBatches:
    """Counts the one program of a contrastive training; its shape is that of the passages."""
    batches = draw_pairs(settings, corpus, max_length=max_length, kept=kept, seed=seed)
    useful, computed, drawn = 0, 0, batches.plan.num_steps_per_epoch
    for step in range(drawn):
        arrays = batches.pack(step, batches.plan.examples_at(step))
        for side in ("question", "passage"):
            lengths = arrays[f"{side}_lengths"]
            useful += int(lengths[lengths > 1].sum())  # a row that fills up a batch has one token
        computed += batches.count_tokens(arrays)
    total = settings.epochs * -(-corpus.trained // settings.batch_size)
    runs = {Shape("pairs", *arrays["passage"].shape): float(total)}
    return StageBatches(stage, total, drawn, useful / computed, runs, batches)


def compile_pairs(
    planner: Planner,
    batches: StageBatches,
    encoders: Encoders,
    settings: ContrastiveConfig,
    *held: PyTree,
) -> None:
    """Plans a contrastive training; `held` as for `compile_training`."""
    pairs = batches.packing

    def make_arrays(shape: Shape) -> dict[str, Any]:
        del shape  # there is one
        return pairs.pack(0, pairs.plan.examples_at(0))

    trainable = make_trainable(encoders, planner.mesh)
    loss = make_loss(encoders, settings, pairs.widths)
    inputs = trainable, settings, {"pairs": loss}, make_arrays
    compile_training(planner, batches, *inputs, *held)
