"""Training: every task's rows in one mix; and the baseline's dense encoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jax.sharding import Mesh

from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained, save
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders, fit_encoders, list_pairs, make_batches
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.runtime.hosts import fetch, is_first
from rag_jax.systems.self_retrieval.config import DenseConfig, ExamplesConfig
from rag_jax.systems.self_retrieval.data import (
    TERMS,
    Format,
    describe_rows,
    list_question_rows,
    make_index_rows,
)
from rag_jax.systems.self_retrieval.loss import make_loss
from rag_jax.training.rows import Row, fit_rows
from rag_jax.training.trainable import Trainable


def run_training(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    base: Pretrained,
    trainable: Trainable,
    tuning: TuningConfig,
    make_format: Callable[..., Format],
    examples: ExamplesConfig,
    train: TrainConfig,
    seed: int,
    profile_steps: int,
    indexing: bool = True,
    titled: bool = True,
) -> None:
    """Trains on indexing, retrieval and assessment; the trained tree is `params`.

    Args:
        indexing: whether the corpus's sentences are trained on.
        titled: whether titles are generated before passages.

    Raises:
        RagJaxError: a row is longer than the model's context.
    """
    format = make_format(titled=titled)
    mined = [r["rows"] for r in read_jsonl(context.path("negatives", "negatives.jsonl"))]
    rows = list(make_index_rows(format, passages, examples, seed=seed)) if indexing else []
    rows += list_question_rows(format, train_questions, passages, mined, examples)
    _check_lengths(rows, base.config.max_length)
    write_json(context.folder / "rows.json", describe_rows(rows))
    fit_rows(
        rows,
        make_loss(base.model.clone(remat=tuning.remat), trainable),
        trainable,
        train,
        context.folder,
        context.progress,
        config=base.config,
        terms=TERMS,
        # Every batch has its share of the tasks.
        strata=[2 * ("retrieval" in row.spans) + ("assessment" in row.spans) for row in rows],
        seed=seed,
        profile_steps=profile_steps,
    )


def _check_lengths(rows: Sequence[Row], limit: int) -> None:
    for row in rows:
        if len(row.tokens) > limit:
            raise RagJaxError(
                f"row {row.id}: {len(row.tokens)} tokens, over the model's context of {limit}; "
                "lower config.model.max_text"
            )


def run_dense_training(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    load_encoders: Callable[..., Encoders],
    dense: DenseConfig,
    mesh: Mesh,
    seed: int,
) -> None:
    """Trains the dense encoder on the same questions, with BM25's hard negatives."""
    encoders = load_encoders()

    def save_encoder(encoders: Encoders) -> None:
        whole = replace(encoders.passage, params=fetch(encoders.passage.params))
        if is_first():
            save(whole, context.folder / "encoder")

    if not dense.train.epochs:
        save_encoder(encoders)
        return
    mined = read_jsonl(context.path("negatives", "negatives.jsonl"))
    batches = make_batches(
        encoders,
        list_pairs(train_questions, [r["rows"][: dense.hard] for r in mined], passages),
        train_questions,
        passages,
        dense.train,
        max_length=dense.encoder.max_length,
        seed=seed,
    )
    fit_encoders(encoders, batches, mesh, context.folder, context.progress, save=save_encoder)
