"""What the batches of a run are: its programs, how often each runs, and the share of padding.

Examples are drawn by their lengths alone, and go through the functions that plan a run's batches.
Of a stage with very many steps some are drawn, and stand for all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from rag_jax.config import ConstantTrainConfig, EncoderConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.data.packing import Microbatch, Packing
from rag_jax.planning.lengths import Lengths
from rag_jax.retrieval.encode import PIECE, SAMPLED, choose_corpus_widths, plan_batches

STEPS = 400  # steps of a stage that are drawn, at most

_Settings = TypeVar("_Settings", bound=ConstantTrainConfig)


class Shape(NamedTuple):
    """The shape of a program's batch.

    Attributes:
        kind: of the examples; "" where there is one kind.
        rows: number of sequences, padding included.
        width: number of tokens of a sequence, padding included.
    """

    kind: str
    rows: int
    width: int


class Corpus(NamedTuple):
    """What a run reads.

    Attributes:
        trained: number of questions that are trained on.
        asked: number of questions that are evaluated.
        passages: number of passages.
        lengths: of the texts.
    """

    trained: int
    asked: int
    passages: int
    lengths: Lengths


@dataclass(frozen=True)
class StageBatches:
    """The batches of a stage.

    Attributes:
        stage: its name.
        steps: number of steps, or of batches where nothing is trained.
        drawn: number of the steps that were drawn.
        useful: share of the examples' tokens among the computed ones.
        runs: number of runs of each program in all steps, estimated by the steps drawn.
        packing: that packed the examples, by which a program's arrays are made; None where a
            program's shape says all.
    """

    stage: str
    steps: int
    drawn: int
    useful: float
    runs: dict[Shape, float]
    packing: Any = None


class Drawn(NamedTuple):
    """What is drawn of a run.

    Attributes:
        stages: by their names, those that have batches of drawn examples.
    """

    corpus: Corpus
    stages: dict[str, StageBatches]


def choose_drawn(settings: _Settings, count: int) -> tuple[int, _Settings]:
    """How many of a stage's `count` examples are drawn, and settings for these.

    With these settings the examples that are drawn take as many steps as all do, because how many
    programs are worth compiling depends on the number of steps.
    """
    drawn = min(count, STEPS * settings.batch_size)
    epochs = max(1, round(settings.epochs * count / drawn)) if settings.epochs else 0
    return drawn, replace(settings, epochs=epochs)


def count_steps(
    stage: str,
    settings: ConstantTrainConfig,
    count: int,
    steps: Iterable[tuple[int, Sequence[Microbatch]]],
    *,
    packing: Any = None,
) -> StageBatches:
    """Counts the programs of a training.

    Args:
        settings: of the run, not those from `choose_drawn`.
        count: number of examples of an epoch.
        steps: for each step drawn its examples' number of tokens, and its microbatches.
    """
    total = settings.epochs * -(-count // settings.batch_size)
    return count_batches(stage, total, steps, packing=packing)


def count_batches(
    stage: str,
    total: int,
    steps: Iterable[tuple[int, Sequence[Microbatch]]],
    *,
    packing: Any = None,
) -> StageBatches:
    """Counts the programs of a stage of `total` steps by some of its steps."""
    useful, drawn, computed = 0, 0, 0
    counts: Counter[Shape] = Counter()
    for tokens, micros in steps:
        drawn, useful = drawn + 1, useful + tokens
        for micro in micros:
            counts[Shape(micro.kind, micro.rows, micro.width)] += 1
            computed += micro.rows * micro.width
    runs = {shape: number * total / max(1, drawn) for shape, number in sorted(counts.items())}
    return StageBatches(stage, total, drawn, useful / max(1, computed), runs, packing)


def count_packed(
    stage: str, settings: ConstantTrainConfig, count: int, plan: BatchPlan, packing: Packing
) -> StageBatches:
    """Counts the programs of a training whose examples share sequences; see `count_steps`."""

    def pack(step: int) -> tuple[int, list[Microbatch]]:
        chosen = plan.examples_at(step)
        return sum(packing.sizes[i].tokens for i in chosen), packing.group(chosen)

    steps = map(pack, range(plan.num_steps_per_epoch))
    return count_steps(stage, settings, count, steps, packing=packing)


def count_encoding(
    stage: str, settings: EncoderConfig, count: int, draw: Callable[[int], Sequence[int]]
) -> StageBatches:
    """Counts the programs that encode `count` texts of a corpus, in pieces as a run does.

    Args:
        draw: draws the lengths of some texts.
    """
    drawn = min(count, PIECE * STEPS // 2)
    lengths = [min(length, settings.max_length) for length in draw(drawn)]
    options = {"program_tokens": settings.program_tokens}
    widths = choose_corpus_widths(lengths[:SAMPLED], count, settings.max_length, **options)

    def encode(start: int) -> tuple[int, list[Microbatch]]:
        piece = lengths[start : start + PIECE]
        planned = plan_batches(piece, settings.batch_size, widths)
        micros = [Microbatch([rows], *shape, "passages") for rows, shape in planned]
        return sum(piece), micros

    pieces = -(-count // PIECE)
    counted = count_batches(stage, pieces, map(encode, range(0, drawn, PIECE)))
    return replace(counted, steps=round(sum(counted.runs.values())))
