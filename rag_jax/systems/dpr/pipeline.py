"""The stages of dense passage retrieval, from an empty folder to the report."""

from functools import partial

from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.evaluate import describe_report, run_evaluation
from rag_jax.systems.dpr.session import Session
from rag_jax.systems.dpr.train import run_dev_negatives, run_training
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.room import encoder_room, index_room
from rag_jax.systems.session import make_stage
from rag_jax.systems.stages import corpus_stage, make_run, run_index, run_negatives

CONFIG = DPRConfig


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    encoder = {"weights": session.fingerprint("encoder.name"), "encoder": c.encoder}
    index, kept = (
        {**encoder, "index": c.index.describe()},
        {"ids": True, "divisible": ("embeddings.npy",)},
    )
    kept["room"] = lambda: index_room(c.encoder.name, len(session.passages))

    def load_untrained(context: StageContext) -> Pretrained:
        del context
        return session.untrained.passage

    def load_trained(context: StageContext) -> Pretrained:
        return session.load_trained(context.path("train", "")).passage

    stage = partial(make_stage, session)
    hard = {"depth": c.negatives.depth, "count": c.negatives.kept}
    training = {**encoder, "train": c.train, "seed": c.seed, "positives": c.positives}
    mining, needs = {"negatives": c.negatives, "bm25": c.bm25}, ("corpus", "negatives")
    validation, validated = [], c.validation.after is not None
    if validated:
        name, pool = "dev_negatives", {"depth": c.negatives.depth, "validation": c.validation}
        pool |= {"bm25": c.bm25}
        validation = [stage(name, run_dev_negatives, pool, "corpus", version=2)]
        training, needs = {**training, "validation": c.validation}, (*needs, name)
    options = {"sides": 2, "shared": c.encoder.shared, "validated": validated}
    room = partial(encoder_room, c.encoder.name, **options)
    evaluation = {**encoder, "on": c.evaluate_on, "depth": c.depth, "bm25": c.bm25}
    evaluation |= describe_reranking(c.retrieve.rerank)
    evaluated = ("corpus", "untrained", "train", "trained")
    return [
        corpus_stage(session),
        stage("negatives", run_negatives, mining, "corpus", version=2, **hard),
        *validation,
        stage("untrained", run_index, index, "corpus", load=load_untrained, **kept),
        stage("train", run_training, training, *needs, room=room),
        stage("trained", run_index, index, "corpus", "train", load=load_trained, **kept),
        stage("evaluate", run_evaluation, evaluation, *evaluated),
    ]


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=("train",))
