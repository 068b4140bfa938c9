"""Training the generator, and the question's encoder with it, by the marginal likelihood."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart import Bart
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.rag.config import JointTrainConfig, RetrieverConfig
from rag_jax.systems.rag.data import (
    Example,
    Format,
    encode_queries,
    make_examples,
    pack_examples,
    pack_queries,
    pick_passages,
)
from rag_jax.systems.rag.lookup import Lookup
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable


def group_examples(
    examples: Sequence[Example], *, docs: int, budget: int, limit: int
) -> list[tuple[list[int], int, int]]:
    """The microbatches of a step's questions: their numbers, number of rows, and width.

    Args:
        docs: number of passages K of each question.
        budget: number of tokens of a microbatch.
        limit: the largest width.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        members[min(round_up(example.width, 32), limit)].append(i)
    parts, groups = count_data_rows(), []
    for width, indices in sorted(members.items()):
        count = max(1, budget // (docs * width) // parts) * parts
        groups += [
            (indices[start : start + count], count, width)
            for start in range(0, len(indices), count)
        ]
    return groups


def run_training(
    context: StageContext,
    *,
    joint: bool,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    generator: Pretrained,
    encoder: Pretrained,
    format: Format,
    make_trainable: Callable[..., Trainable],
    make_loss: Callable[..., LossFunction],
    load_index: Callable[..., Index],
    encode_passages: Callable[..., Any],
    k: int,
    train: JointTrainConfig,
    retriever: RetrieverConfig,
    seed: int,
    profile_steps: int,
) -> None:
    """Trains by the marginal likelihood of each question's first answer.

    Args:
        joint: whether the question's encoder is trained with the generator.
        k: number of passages of a question.
    """
    trainable = make_trainable(joint=joint)
    queries = encode_queries(
        encoder.tokenizer, [q.question for q in train_questions], max_length=retriever.max_length
    )
    plan = plan_questions(len(train_questions), batch_size=train.batch_size, seed=seed)
    lookup = Lookup(
        folder=context.folder,
        encoder=encoder,
        passages=passages,
        index=load_index(context.path("index", "index")),
        plan=plan,
        queries=queries,
        count=k,
        total_steps=train.epochs * plan.num_steps_per_epoch,
        joint=joint,
        refresh_every=train.refresh_every if joint else 0,
        encode_passages=encode_passages,
    )
    targets = max(len(format.encode_answer(q.answers[0])) for q in train_questions)

    def pack(step: int, chosen: list[int]) -> Batch:
        rows, embeddings = lookup.find(step)
        questions = [train_questions[i] for i in chosen]
        examples = make_examples(
            format,
            [question.question for question in questions],
            pick_passages(passages, rows),
            [question.answers[0] for question in questions],
        )
        asked = [queries[i] for i in chosen]
        return Batch(
            pack_microbatches(
                examples,
                asked,
                embeddings,
                budget=train.microbatch_tokens,
                limit=generator.config.max_length,
                targets=round_up(targets, 8),
                query_width=lookup.width,
            ),
            count_flops(
                generator,
                encoder,
                examples,
                asked,
                full=trainable.frozen["generator"] is None,
                joint=joint,
            ),
        )

    fit(
        plan,
        pack,
        {"questions": make_loss(joint=joint)},
        trainable,
        train,
        context.folder,
        context.progress,
        ids=[question.id for question in train_questions],
        hook=lookup,
        profile_steps=profile_steps,
    )


def plan_questions(count: int, *, batch_size: int, seed: int) -> BatchPlan:
    """Which questions make each step's batch; microbatches are by `group_examples`."""
    return BatchPlan(
        [1] * count,
        kinds=[""] * count,
        strata=[0] * count,
        batch_size=batch_size,
        budget=1,
        program_tokens=0,
        seed=seed,
    )


def pack_microbatches(
    examples: Sequence[Example],
    queries: Sequence[Sequence[int]],
    embeddings: Any,
    *,
    budget: int,
    limit: int,
    targets: int,
    query_width: int,
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The microbatches of one step.

    Args:
        examples: the step's questions.
        queries: tokens of the questions for the query encoder.
        embeddings: `[N, K, E]`, of each question's passages.
        budget: number of tokens of a microbatch.
        limit: largest width of an input.
        targets: number of tokens that an answer is padded to.
        query_width: number of tokens that a query is padded to.
    """
    microbatches, docs = [], len(examples[0].inputs)
    for members, count, width in group_examples(examples, docs=docs, budget=budget, limit=limit):
        arrays = pack_examples(
            [examples[i] for i in members],
            width=width,
            targets=targets,
            batch=count,
            scale=1 / len(examples),
        )
        arrays |= pack_queries(
            [queries[i] for i in members], embeddings[members], width=query_width, batch=count
        )
        microbatches.append(("questions", arrays))
    return microbatches


def count_flops(
    generator: Pretrained,
    encoder: Pretrained,
    examples: Sequence[Example],
    queries: Sequence[Sequence[int]],
    *,
    full: bool,
    joint: bool,
) -> float:
    """Number of operations of a step's matrix products.

    Args:
        full: whether all weights of the generator are trained: three passes, else two.
        joint: whether the question's encoder is trained: three passes, else one.
    """
    read = sum(len(tokens) for example in examples for tokens in example.inputs)
    targets = sum(len(example.target) * len(example.inputs) for example in examples)
    is_seq2seq = isinstance(generator.model, Bart)
    tokens = read if is_seq2seq else read + targets
    flops = (3 if full else 2) * generator.config.count_flops(tokens, targets)
    return flops + (3 if joint else 1) * encoder.config.count_flops(sum(map(len, queries)))
