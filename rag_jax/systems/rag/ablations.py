"""Generators that are trained for what they read: BM25's passages, or none.

RAG's retriever is replaced by a fixed BM25, whose scores are the logits of `p(z|x)` (Lewis et al.
2020, section 4.5 and table 6); the closed-book generator answers from its parameters alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, PyTree

from rag_jax.data.batches import BatchPlan
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import BM25
from rag_jax.search_config import BM25Config
from rag_jax.systems.rag.config import JointTrainConfig, RAGConfig
from rag_jax.systems.rag.data import (
    Example,
    Format,
    make_examples,
    pack_scores,
    pick_passages,
)
from rag_jax.systems.rag.evaluate import (
    ABLATIONS,
    Reading,
    choose_depth,
    choose_way,
    compare_readings,
)
from rag_jax.systems.rag.infer import Engine
from rag_jax.systems.rag.rankings import Ranking, rank_by_words
from rag_jax.systems.rag.train import (
    ExampleReader,
    count_generator_flops,
    list_rows,
    plan_training,
)
from rag_jax.systems.session import Session, make_stage
from rag_jax.systems.words import build_words
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable

Reads = Literal["closed_book", "bm25"]


def list_ablations(
    session: Session, *, training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> list[Stage]:
    """The stages that train a generator for each of `ABLATIONS` and evaluate them."""
    c, stage = session.config, partial(make_stage, session)
    read: dict[Reads, dict[str, Any]] = {
        "closed_book": {},
        "bm25": {"passages": c.passages, "bm25": c.bm25},
    }
    options = {"k": c.passages, "room": partial(session.estimate_training, joint=False)}
    trainings = [
        stage(name, run_fixed_training, {**training, **more}, "corpus", reads=name, **options)
        for name, more in read.items()
    ]
    return [*trainings, stage("compare", run_comparison, evaluation, "corpus", *ABLATIONS)]


def rank_fixed(
    reads: Reads,
    asked: Sequence[str],
    depth: int,
    open_words: Callable[[], BM25],
) -> Ranking:
    """BM25's passages for each question, or a single place without a passage.

    Args:
        open_words: gives BM25, if it is read.
    """
    if reads == "bm25":
        words = open_words()
        return rank_by_words(words, asked, min(depth, words.size))
    return Ranking(np.zeros((len(asked), 1), np.float32), np.full((len(asked), 1), -1, np.int32))


def run_fixed_training(
    context: StageContext,
    *,
    reads: Reads,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    generator: Pretrained,
    format: Format,
    make_trainable: Callable[..., Trainable],
    make_loss: Callable[..., LossFunction],
    k: int,
    bm25: BM25Config,
    train: JointTrainConfig,
    seed: int,
    profile_steps: int,
) -> None:
    """Trains the generator by the marginal likelihood of each row's answer; passages are fixed."""
    rows = list_rows(train_questions, train.answers)
    asked = [question.question for question, _ in rows]
    found = rank_fixed(reads, asked, k, partial(build_words, context, passages, bm25))
    trainable = make_trainable(joint=False)
    passes = 3 if trainable.frozen["generator"] is None else 2
    plan = BatchPlan([0] * len(rows), batch_size=train.batch_size, seed=seed)

    def read(chosen: Sequence[int], picked: Int[np.ndarray, "N K"]) -> list[Example]:
        batch = [asked[i] for i in chosen], pick_passages(passages, picked)
        return make_examples(format, *batch, [rows[i][1] for i in chosen])

    reader = ExampleReader(read, lambda step: found.rows[plan.examples_at(step)], plan)
    packing = plan_training(reader, [answer for _, answer in rows], train, generator, format)

    def pack(step: int, chosen: list[int]) -> Batch:
        examples = reader.read(step, found.rows[chosen])
        pack_found = partial(pack_scores, found.scores[chosen])
        flops = count_generator_flops(generator, examples, passes=passes)
        return Batch(packing.pack(examples, pack_found), flops)

    losses, files = {"questions": make_loss(joint=False)}, (context.folder, context.progress)
    options = {"ids": [question.id for question, _ in rows], "profile_steps": profile_steps}
    fit(plan, pack, losses, trainable, train, *files, **options)


def run_comparison(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    labels: Sequence[str],
    load_trained: Callable[[StageContext, str], PyTree],
    make_engine: Callable[[PyTree], Engine],
    config: RAGConfig,
) -> None:
    """Answers every question by each of `ABLATIONS`, which reads what it was trained to read."""
    asked = [question.question for question in questions]
    engines = {name: make_engine(load_trained(context, name)["generator"]) for name in ABLATIONS}
    words = build_words(context, passages, config.bm25)
    bm25 = rank_by_words(words, asked, choose_depth(config, len(passages)))
    readings = [
        Reading("closed_book", None, {"fast": "closed_book"}),
        Reading("bm25", "bm25", {choose_way(config): "bm25"}),
    ]
    shared = {"passages": passages, "labels": labels, "config": config}
    compare_readings(context, readings, engines, {"bm25": bm25}, questions, **shared)
