"""The training of both encoders, and the validation that chooses the epoch that is kept."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from rag_jax.config import ContrastiveConfig, EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.retrieval.validation import BestEpoch, Pool, measure_rank
from rag_jax.systems.dpr.config import DPRConfig, ValidationConfig
from rag_jax.systems.dpr.data import make_pairs
from rag_jax.systems.stages import run_negatives, train_encoders


def run_dev_negatives(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    dev_questions: Sequence[Question],
    config: DPRConfig,
) -> None:
    """Writes the wrong passages of the questions to validate on, as `run_negatives` does."""
    counts = {"depth": config.negatives.depth, "count": config.validation.negatives}
    options = {"bm25": config.bm25, **counts}
    run_negatives(context, passages=passages, train_questions=dev_questions, **options)


def run_training(
    context: StageContext,
    *,
    untrained: Encoders,
    train_questions: Sequence[Question],
    load_pool: Callable[[StageContext], Pool],
    encode: Callable[..., Float[np.ndarray, "N E"]],
    passages: Sequence[Passage],
    positives: Literal["all", "first"],
    train: ContrastiveConfig,
    validation: ValidationConfig,
    encoding: EncoderConfig,
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains the encoders and saves them as models, `question` and `passage`.

    The last epoch's, or the best one's by the average rank on the questions to validate on.
    """
    mined = context.path("negatives", "negatives.jsonl")
    options = {"max_length": encoding.max_length, "mesh": mesh, "seed": seed}
    options["sides"] = {"question": "question", "passage": "passage"}

    def make_hook(*, steps: int, restore: Callable[[PyTree[Array]], Encoders]) -> BestEpoch:
        pool = load_pool(context)

        def measure(params: PyTree[Array]) -> float:
            return measure_rank(restore(params), pool, passages, encode)

        return BestEpoch(context.folder, steps=steps, after=validation.after, measure=measure)

    if validation.after is not None:
        options["make_hook"] = make_hook
    pairs = partial(make_pairs, train_questions, passages, mined, positives)
    train_encoders(context, untrained, pairs, train_questions, passages, train, **options)
