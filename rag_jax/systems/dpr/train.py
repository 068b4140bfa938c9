"""The training of both encoders."""

from collections.abc import Sequence
from dataclasses import replace

from jax.sharding import Mesh

from rag_jax.config import ContrastiveConfig, EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import save
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders, fit_encoders, make_batches
from rag_jax.runtime.hosts import fetch, is_first
from rag_jax.systems.dpr.data import make_pairs


def run_training(
    context: StageContext,
    *,
    untrained: Encoders,
    train_questions: Sequence[Question],
    passages: Sequence[Passage],
    train: ContrastiveConfig,
    encoding: EncoderConfig,
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains the encoders and saves them as models, `question` and `passage`."""

    def save_both(encoders: Encoders) -> None:
        for side in ("question", "passage"):
            encoder = getattr(encoders, side)
            whole = replace(encoder, params=fetch(encoder.params))
            if is_first():
                save(whole, context.folder / side)

    if not train.epochs:
        save_both(untrained)
        return
    batches = make_batches(
        untrained,
        make_pairs(train_questions, passages, context.path("negatives", "negatives.jsonl")),
        train_questions,
        passages,
        train,
        max_length=encoding.max_length,
        seed=seed,
    )
    fit_encoders(untrained, batches, mesh, context.folder, context.progress, save=save_both)
