"""Training: every task's rows in one mix; and the baseline's dense encoder."""

from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders, Pair, list_pairs
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
from rag_jax.systems.self_retrieval.loss import make_loss
from rag_jax.systems.stages import train_encoders
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
    rows += list_question_rows(format, train_questions, passages, mined, examples, seed=seed)
    _check_lengths(rows, base.config.max_length)
    write_json(context.folder / "rows.json", describe_rows(rows))
    loss = make_loss(base.model.clone(remat=tuning.remat), trainable)
    # Every batch has its share of the tasks.
    strata = [2 * ("retrieval" in row.spans) + ("assessment" in row.spans) for row in rows]
    options = {"config": base.config, "terms": TERMS, "strata": strata, "seed": seed}
    options["profile_steps"] = profile_steps
    fit_rows(rows, loss, trainable, train, context.folder, context.progress, **options)


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
