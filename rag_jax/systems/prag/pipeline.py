"""The stages of Parametric RAG, from an empty folder to the report."""

from dataclasses import replace
from functools import partial

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.prag.adapters import augment_stage, encode_stage
from rag_jax.systems.prag.baselines import CORPUS, run_reading, run_search
from rag_jax.systems.prag.config import By, PRAGConfig
from rag_jax.systems.prag.evaluate import describe_report, run_evaluation, run_retrieval
from rag_jax.systems.prag.reader import open_reader
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import run_warm_up
from rag_jax.systems.prag.translation import TAUGHT, list_translation
from rag_jax.systems.session import make_stage
from rag_jax.systems.stages import corpus_stage, likelihood_stages, make_run

CONFIG = PRAGConfig


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"weights": session.fingerprint("model.name"), "model": c.model}
    asked = {"on": c.evaluate_on, "questions": c.questions}
    training = {**model, "tuning": c.tuning, "prompt": c.prompt, "seed": c.seed}
    stage = partial(make_stage, session)
    warming = {**training, "warm_up": c.warm_up}
    options = {"version": 2, "room": session.estimate_warm_up}
    warm_up = stage("warm_up", run_warm_up, warming, "corpus", **options)
    options = {"room": session.estimate_adapters, "found": "retrieve", "made": "augment"}
    encodings = [
        encode_stage(session, name, training, variant, **options)
        for name, variant in session.variants.items()
    ]
    answering = {"prompt": c.prompt, "answer": c.answer, "passages": c.retrieve.passages}
    searching = session.describe_searching()
    reading = {**model, **answering, **searching}
    evaluation = {**asked, **model, **answering, "seed": c.seed}
    evaluated = ("corpus", "retrieve", "augment", *session.variants)
    readers = []
    if c.readers:
        by: By = "bm25" if {*c.readers} <= {"bm25", CORPUS} else "fused"
        finding = {**asked, **session.describe_searching(by), "readers": c.readers}
        read = {**asked, **model, **answering, "readers": c.readers}
        readers = [
            stage("search", run_search, finding, "corpus"),
            stage("read", run_reading, read, "corpus", "search", version=3),
        ]
    return [
        corpus_stage(session),
        stage("retrieve", run_retrieval, {**asked, **searching}, "corpus"),
        augment_stage(session, "augment", model, found="retrieve"),
        *[warm_up] * any("warm_up" in encoding.needs for encoding in encodings),
        *encodings,
        *list_translation(session, model=model, training=training, evaluation=evaluation),
        stage("evaluate", run_evaluation, evaluation, *evaluated, version=4),
        *readers,
        *likelihood_stages(session, open_reader, reading, "corpus"),
    ]


def _start_at_random(config: PRAGConfig) -> PRAGConfig:
    """The settings of documents that are encoded without a warm-up, and not translated."""
    encode = replace(config.encode, start="random")
    return replace(config, encode=encode, translator=replace(config.translator, documents=0))


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=("warm_up", *TAUGHT), untrain=_start_at_random)
