"""Training: on the corpus's sentences, on every task's rows in one mix; the dense baseline's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.retrieval.pairs import Pair, list_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json
from rag_jax.systems.self_retrieval.config import DenseConfig, ExamplesConfig
from rag_jax.systems.self_retrieval.data import (
    TERMS,
    Format,
    describe_rows,
    list_question_rows,
    make_index_rows,
)
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.loss import make_loss
from rag_jax.systems.self_retrieval.validation import Validation
from rag_jax.systems.stages import train_encoders
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import Row, fit_rows
from rag_jax.training.trainable import Trainable, set_passes


def run_indexing(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    base: Pretrained,
    trainable: Trainable,
    tuning: TuningConfig,
    make_format: Callable[..., Format],
    examples: ExamplesConfig,
    indexing: TrainConfig,
    validated: Sequence[Question],
    open_engine: Callable[..., Engine],
    seed: int,
    profile_steps: int,
    titled: bool = True,
) -> None:
    """The first run: trains on the corpus's sentences alone; the trained tree is `params`.

    Args:
        validated: questions that passages are found for after each epoch; it then needs the trie.
        titled: whether titles are generated before passages.

    Raises:
        RagJaxError: a row is longer than the model's context.
    """
    format, sentences = make_format(titled=titled), examples.indexing_sentences
    rows = make_index_rows(format, passages, replace(examples, sentences=sentences), seed=seed)
    loss = make_loss(set_passes(base.model, tuning), trainable)
    options = {"seed": seed, "profile_steps": profile_steps}
    if validated:
        engine = open_engine(context, context.name, titled=titled)
        options["make_hook"] = partial(Validation, engine, trainable, validated, assessed=False)
    _fit(context, [*rows], loss, trainable, indexing, config=base.config, **options)


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
    validated: Sequence[Question],
    open_engine: Callable[..., Engine],
    seed: int,
    profile_steps: int,
    start: str | None = None,
    instead_of: Sequence[str] = (),
    titled: bool = True,
) -> None:
    """Trains on indexing, retrieval and assessment; the trained tree is `params`.

    Args:
        validated: as for `run_indexing`.
        start: the stage whose trained tree is trained further; None for the model as it is.
        instead_of: the stages of a model, in whose place this one is trained without indexing: on
            the questions alone, over more epochs, for as many steps as those stages together.
        titled: whether titles are generated before passages.

    Raises:
        RagJaxError: a row is longer than the model's context.
    """
    format = make_format(titled=titled)
    mined = [r["rows"] for r in read_jsonl(context.path("negatives", "negatives.jsonl"))]
    rows = [] if instead_of else list(make_index_rows(format, passages, examples, seed=seed))
    rows += list_question_rows(format, train_questions, passages, mined, examples, seed=seed)
    loss = make_loss(set_passes(base.model, tuning), trainable)
    options = {"config": base.config, "seed": seed, "profile_steps": profile_steps}
    if validated:
        engine = open_engine(context, context.name, titled=titled)
        options["make_hook"] = partial(Validation, engine, trainable, validated, assessed=True)
    if start:
        options["start"] = trainable.load(context.path(start, "params"))
    if instead_of:  # a line a step
        logs = [read_jsonl(context.path(stage, "log.jsonl")) for stage in instead_of]
        options["steps"] = sum(map(len, logs))
    _fit(context, rows, loss, trainable, train, **options)


def _fit(
    context: StageContext,
    rows: Sequence[Row],
    loss: LossFunction,
    trainable: Trainable,
    settings: TrainConfig,
    *,
    config: DecoderConfig,
    **options: Any,
) -> None:
    """Writes `rows.json` and trains on the rows; every batch has its share of the tasks."""
    _check_lengths(rows, config.max_length)
    write_json(context.folder / "rows.json", describe_rows(rows))
    strata = [2 * ("retrieval" in row.spans) + ("assessment" in row.spans) for row in rows]
    options |= {"config": config, "terms": TERMS, "strata": strata}
    fit_rows(rows, loss, trainable, settings, context.folder, context.progress, **options)


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

    def list_examples() -> list[Pair]:
        mined = read_jsonl(context.path("negatives", "negatives.jsonl"))
        return list_pairs(train_questions, [r["rows"][: dense.hard] for r in mined], passages)

    options = {"max_length": dense.encoder.max_length, "mesh": mesh, "seed": seed}
    options["sides"] = {"encoder": "passage"}
    data = list_examples, train_questions, passages
    train_encoders(context, load_encoders(), *data, dense.train, **options)
