"""Training the generator, and the question's encoder with it, by the marginal likelihood."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.data.packing import Microbatch, Shapes, choose_shapes, group_examples
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.retrieval.texts import tokenize_for_training
from rag_jax.systems.rag.config import JointTrainConfig, RetrieverConfig
from rag_jax.systems.rag.data import (
    Example,
    Format,
    list_slots,
    make_examples,
    pack_examples,
    pack_queries,
    pick_passages,
)
from rag_jax.systems.rag.lookup import Lookup
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import list_costs, list_sampled
from rag_jax.training.trainable import Trainable


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
    queries = tokenize_for_training(encoder, asked, retriever.max_length, role="query")
    plan = BatchPlan([0] * len(asked), batch_size=train.batch_size, seed=seed)
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
    passes = 1 if not train.generator else 3 if trainable.frozen["generator"] is None else 2

    def read(chosen: Sequence[int], rows: Int[np.ndarray, "N K"]) -> list[Example]:
        batch = [asked[i] for i in chosen], pick_passages(passages, rows)
        return make_examples(format, *batch, [answers[i] for i in chosen])

    reader = ExampleReader(read, lookup.expect, plan)
    packing = plan_training(reader, answers, train, generator, format)

    def pack(step: int, chosen: list[int]) -> Batch:
        rows, embeddings = lookup.find(step)
        examples, asking = reader.read(step, rows), [queries[i] for i in chosen]

        def pack_found(slots: list[int]) -> dict[str, np.ndarray]:
            return pack_queries(asking, embeddings, slots, width=lookup.width)

        flops = count_generator_flops(generator, examples, passes=passes)
        flops += (3 if joint else 1) * encoder.config.count_flops(sum(map(len, asking)))
        return Batch(packing.pack(examples, pack_found), flops)

    options = {"ids": [question.id for question, _ in pairs], "profile_steps": profile_steps}
    losses, files = {"questions": make_loss(joint=joint)}, (context.folder, context.progress)
    fit(plan, pack, losses, trainable, train, *files, hook=lookup, **options)


class ExampleReader:
    """Reads the examples of each step: once those of the first steps, by which shapes are chosen.

    Args:
        read: from numbers of questions and rows of their passages to examples.
        expect: rows of the passages that a step would read if nothing were trained before it.
        plan: which questions make each step's batch.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int], Int[np.ndarray, "N K"]], list[Example]],
        expect: Callable[[int], Int[np.ndarray, "N K"]],
        plan: BatchPlan,
    ) -> None:
        self._read, self.plan = read, plan
        self._ahead: dict[int, tuple[Int[np.ndarray, "N K"], list[Example]]] = {}
        for step in list_sampled(plan):
            rows = expect(step)
            self._ahead[step] = rows, read(plan.examples_at(step), rows)

    def list_read(self) -> list[list[Example]]:
        """The examples of the first steps."""
        return [examples for _, examples in self._ahead.values()]

    def read(self, step: int, rows: Int[np.ndarray, "N K"]) -> list[Example]:
        """The examples of a step with the passages that it found."""
        expected, examples = self._ahead.pop(step, (None, []))
        if expected is not None and np.array_equal(rows, expected):
            return examples
        return self._read(self.plan.examples_at(step), rows)


def list_rows(
    questions: Sequence[Question], answers: Literal["first", "all"]
) -> list[tuple[Question, str]]:
    """The training rows: each question with its first answer, or with each of its answers."""
    if answers == "first":
        return [(question, question.answers[0]) for question in questions]
    return [
        (question, answer) for question in questions for answer in dict.fromkeys(question.answers)
    ]


@dataclass(frozen=True)
class QuestionPacking:
    """Packs a step's questions into microbatches.

    Attributes:
        shapes: of the microbatches.
        start_ids: as for `pack_examples`.
        answer: number of tokens that an answer is padded to.
    """

    shapes: Shapes
    start_ids: tuple[int, ...]
    answer: int

    def pack(
        self,
        examples: Sequence[Example],
        pack_found: Callable[[list[int]], dict[str, np.ndarray]],
    ) -> list[tuple[str, dict[str, np.ndarray]]]:
        """The microbatches of one step.

        Args:
            pack_found: the passages' arrays of a microbatch, from its places' questions (see
                `list_slots`): what `pack_queries` or `pack_scores` gives.
        """
        return [
            (micro.kind, self.pack_micro(examples, micro, pack_found, scale=1 / len(examples)))
            for micro in self.group(examples)
        ]

    def group(self, examples: Sequence[Example]) -> list[Microbatch]:
        """Which questions of a step share sequences and microbatches; numbers are in `examples`."""
        sizes = [example.measure(self.start_ids) for example in examples]
        found = group_examples(sizes, self.shapes)
        return [micro._replace(kind="questions") for micro in found]

    def pack_micro(
        self,
        examples: Sequence[Example],
        micro: Microbatch,
        pack_found: Callable[[list[int]], dict[str, np.ndarray]],
        *,
        scale: float,
    ) -> dict[str, np.ndarray]:
        """The arrays of a microbatch, with `scale` as a question's weight; see `pack`."""
        sequences = [[examples[i] for i in sequence] for sequence in micro.sequences]
        items = self.shapes.items
        arrays = pack_examples(
            sequences,
            start_ids=self.start_ids,
            width=micro.width,
            written=self.shapes.targets,
            items=items,
            answer=self.answer,
            batch=micro.rows,
            scale=scale,
        )
        return arrays | pack_found(list_slots(micro.sequences, batch=micro.rows, items=items))


def plan_questions(
    sampled: Sequence[Sequence[Example]],
    model: Bart | Decoder,
    *,
    max_length: int,
    answer: int,
    **costs: Any,
) -> QuestionPacking:
    """How questions share sequences.

    Args:
        sampled: the questions of some steps.
        max_length: largest number of tokens of an input.
        answer: largest number of tokens of an answer.
        costs: from `rows.list_costs`.
    """
    start_ids = tuple(model.config.start_ids) if isinstance(model, Bart) else ()
    longest = Example([[0] * max_length] * len(sampled[0][0].inputs), [0] * answer)
    sizes = [[example.measure(start_ids) for example in batch] for batch in sampled]
    shapes = choose_shapes(sizes, largest=longest.measure(start_ids), **costs)
    return QuestionPacking(shapes, start_ids, round_up(answer, 8))


def plan_training(
    reader: ExampleReader,
    answers: Sequence[str],
    train: JointTrainConfig,
    generator: Pretrained,
    format: Format,
) -> QuestionPacking:
    """How the questions of a training share sequences, by the steps that were read ahead."""
    return plan_questions(
        reader.list_read(),
        generator.model,
        max_length=format.max_length,
        answer=max(len(format.encode_answer(answer)) for answer in answers),
        **list_costs(reader.plan, train, generator.config),
    )


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
