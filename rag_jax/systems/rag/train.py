"""Training the generator, and the question's encoder with it, by the marginal likelihood."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

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
        budget: as for `pack_microbatches`, as is `limit`.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        members[min(round_up(example.width, 32), limit)].append(i)
    parts, groups = count_data_rows(), []
    for width, indices in sorted(members.items()):
        count = max(1, budget // (docs * width) // parts) * parts
        starts = range(0, len(indices), count)
        groups += [(indices[start : start + count], count, width) for start in starts]
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
    """
    trainable = make_trainable(joint=joint)
    asked = [question.question for question in train_questions]
    answers = [question.answers[0] for question in train_questions]
    queries = encode_queries(encoder.tokenizer, asked, max_length=retriever.max_length)
    plan = plan_questions(len(asked), batch_size=train.batch_size, seed=seed)
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
    sizes = {
        "budget": train.microbatch_tokens,
        "limit": generator.config.max_length,
        "targets": round_up(max(len(format.encode_answer(answer)) for answer in answers), 8),
        "query_width": lookup.width,
    }
    passes = {"full": trainable.frozen["generator"] is None, "joint": joint}

    def pack(step: int, chosen: list[int]) -> Batch:
        rows, embeddings = lookup.find(step)
        texts = pick_passages(passages, rows)
        batch = ([asked[i] for i in chosen], texts, [answers[i] for i in chosen])
        examples, read = make_examples(format, *batch), [queries[i] for i in chosen]
        flops = count_flops(generator, encoder, examples, read, **passes)
        return Batch(pack_microbatches(examples, read, embeddings, **sizes), flops)

    options = {"ids": [q.id for q in train_questions], "profile_steps": profile_steps}
    losses, files = {"questions": make_loss(joint=joint)}, (context.folder, context.progress)
    fit(plan, pack, losses, trainable, train, *files, hook=lookup, **options)


def plan_questions(count: int, *, batch_size: int, seed: int) -> BatchPlan:
    """Which questions make each step's batch; microbatches are by `group_examples`."""
    equal = {"kinds": [""] * count, "strata": [0] * count}
    options = {"batch_size": batch_size, "budget": 1, "program_tokens": 0, "seed": seed}
    return BatchPlan([1] * count, **equal, **options)


def pack_microbatches(
    examples: Sequence[Example],
    queries: Sequence[Sequence[int]],
    embeddings: Float[np.ndarray, "N K E"],
    *,
    budget: int,
    limit: int,
    targets: int,
    query_width: int,
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The microbatches of one step.

    Args:
        queries: tokens of the questions for the query encoder.
        budget: number of tokens of a microbatch.
        targets: number of tokens that an answer is padded to.
        query_width: number of tokens that a query is padded to.
    """
    microbatches, docs = [], len(examples[0].inputs)
    for members, count, width in group_examples(examples, docs=docs, budget=budget, limit=limit):
        chosen, read = [examples[i] for i in members], [queries[i] for i in members]
        sizes = {"width": width, "targets": targets, "batch": count}
        arrays = pack_examples(chosen, **sizes, scale=1 / len(examples))
        arrays |= pack_queries(read, embeddings[members], width=query_width, batch=count)
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
