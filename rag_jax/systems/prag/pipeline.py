"""The stages of Parametric RAG, from an empty folder to the report."""

from dataclasses import replace
from functools import partial
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.prag.augment import run_augmentation
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.evaluate import describe_report, run_evaluation, run_retrieval
from rag_jax.systems.prag.reader import open_reader
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import run_encoding, run_warm_up
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.session import bind, make_stage
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
    encodings = [
        Stage(
            name,
            bind(session, run_encoding, variant=variant, settings=c.encode),
            needs=("corpus", "retrieve", "augment", *["warm_up"] * (variant.start == "warm")),
            settings={**training, "variant": variant, "encode": c.encode, "augment": c.augment},
            version=2,
            divisible=("encoded.jsonl",),
            repairs=True,
            room=session.estimate_adapters,
        )
        for name, variant in session.variants.items()
    ]
    searching = _list_searching(session)
    sampled = {"seed": c.seed} if c.augment.by == "model" else {}  # rules draw nothing
    augmentation = {**model, "augment": c.augment, "full": c.prompt.reasoning, **sampled}
    if c.augment.model is not None:
        augmentation["writer"] = session.fingerprint("augment.model")
    answering = {"prompt": c.prompt, "answer": c.answer, "passages": c.retrieve.passages}
    reading = {**model, **answering, **searching}
    evaluation = {**asked, **model, **answering, "seed": c.seed}
    evaluated, needed = ("corpus", "retrieve", "augment", *session.variants), ("corpus", "retrieve")
    options = {"divisible": ("augmented.jsonl",), "version": 2}
    return [
        corpus_stage(session),
        stage("retrieve", run_retrieval, {**asked, **searching}, "corpus"),
        stage("augment", run_augmentation, augmentation, *needed, **options),
        *[warm_up] * any("warm_up" in encoding.needs for encoding in encodings),
        *encodings,
        stage("evaluate", run_evaluation, evaluation, *evaluated, version=2),
        *likelihood_stages(session, open_reader, reading, "corpus"),
    ]


def _list_searching(session: Session) -> dict[str, Any]:
    """The settings of the searchers that find documents."""
    c = session.config
    settings: dict[str, Any] = {
        "retrieve": {**vars(c.retrieve)},
        **describe_reranking(c.retrieve.rerank),
    }
    del settings["retrieve"]["rerank"]
    if c.retrieve.by != "fused":
        del settings["retrieve"]["fusion"]
    if c.retrieve.by_encoder:
        settings["encoder"] = session.fingerprint("retrieve.encoder.name")
    if c.retrieve.by_words:
        settings["bm25"] = c.bm25
    return settings


def _start_at_random(config: PRAGConfig) -> PRAGConfig:
    """The settings of documents that are encoded without a warm-up."""
    return replace(config, encode=replace(config.encode, start="random"))


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=("warm_up",), untrain=_start_at_random)
