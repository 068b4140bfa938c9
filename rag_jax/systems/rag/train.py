"""Training the generator, and the question's encoder with it, by the marginal likelihood."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

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
    """Trains by the marginal likelihood of each row's answer.

    Args:
        joint: whether the question's encoder is trained, with the generator if that is.
    """
    trainable = make_trainable(joint=joint)
    pairs = list_rows(train_questions, train.answers)
    asked = [question.question for question, _ in pairs]
    answers = [answer for _, answer in pairs]
    queries = encode_queries(encoder.tokenizer, asked, max_length=retriever.max_length)
    plan = plan_questions(len(asked), batch_size=train.batch_size, seed=seed)
    lookup = Lookup(
        folder=context.folder,
        encoder=encoder,
        passages=passages,
        index=load_index(context.path("index", "index")),
        plan=plan,
        queries=queries,
        count=min(k, len(passages)),
        total_steps=train.epochs * plan.num_steps_per_epoch,
        joint=joint,
        refresh_every=train.refresh_every if joint else 0,
        encode_passages=encode_passages,
    )
    sizes = {
        "budget": train.microbatch_tokens,
        "limit": generator.config.max_length,
        "targets": round_up(max(len(format.encode_answer(answer)) for answer in answers), 8),
    }
    passes = 1 if not train.generator else 3 if trainable.frozen["generator"] is None else 2

    def pack(step: int, chosen: list[int]) -> Batch:
        rows, embeddings = lookup.find(step)
        texts = pick_passages(passages, rows)
        batch = ([asked[i] for i in chosen], texts, [answers[i] for i in chosen])
        examples, read = make_examples(format, *batch), [queries[i] for i in chosen]

        def pack_found(members: list[int], count: int) -> dict[str, np.ndarray]:
            part = [read[i] for i in members]
            return pack_queries(part, embeddings[members], width=lookup.width, batch=count)

        flops = count_generator_flops(generator, examples, passes=passes)
        flops += (3 if joint else 1) * encoder.config.count_flops(sum(map(len, read)))
        return Batch(pack_microbatches(examples, pack_found, **sizes), flops)

    options = {"ids": [question.id for question, _ in pairs], "profile_steps": profile_steps}
    losses, files = {"questions": make_loss(joint=joint)}, (context.folder, context.progress)
    fit(plan, pack, losses, trainable, train, *files, hook=lookup, **options)


def list_rows(
    questions: Sequence[Question], answers: Literal["first", "all"]
) -> list[tuple[Question, str]]:
    """The training rows: each question with its first answer, or with each of its answers."""
    if answers == "first":
        return [(question, question.answers[0]) for question in questions]
    return [
        (question, answer) for question in questions for answer in dict.fromkeys(question.answers)
    ]


def plan_questions(count: int, *, batch_size: int, seed: int) -> BatchPlan:
    """Which questions make each step's batch; microbatches are by `group_examples`."""
    return BatchPlan([0] * count, batch_size=batch_size, seed=seed)


def pack_microbatches(
    examples: Sequence[Example],
    pack_found: Callable[[list[int], int], dict[str, np.ndarray]],
    *,
    budget: int,
    limit: int,
    targets: int,
) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The microbatches of one step.

    Args:
        pack_found: the passages' arrays of a microbatch, from the numbers of its examples and the
            number of rows: what `pack_queries` or `pack_scores` gives.
        budget: number of tokens of a microbatch.
        limit: largest number of tokens that an input is padded to.
        targets: number of tokens that an answer is padded to.
    """
    microbatches, docs = [], len(examples[0].inputs)
    for members, count, width in group_examples(examples, docs=docs, budget=budget, limit=limit):
        sizes = {"width": width, "targets": targets, "batch": count}
        arrays = pack_examples([examples[i] for i in members], **sizes, scale=1 / len(examples))
        arrays |= pack_found(members, count)
        microbatches.append(("questions", arrays))
    return microbatches


def count_generator_flops(
    generator: Pretrained, examples: Sequence[Example], *, passes: int
) -> float:
    """Number of operations of the matrix products of the generator in one step.

    Args:
        passes: 3 if all weights are trained, 2 if an adapter is, 1 if nothing is.
    """
    read = sum(len(tokens) for example in examples for tokens in example.inputs)
    targets = sum(len(example.target) * len(example.inputs) for example in examples)
    is_seq2seq = isinstance(generator.model, Bart)
    return passes * generator.config.count_flops(read if is_seq2seq else read + targets, targets)
