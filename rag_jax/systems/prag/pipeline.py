"""The stages of Parametric RAG, from an empty folder to the report."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import build
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import Stage
from rag_jax.systems.prag.augment import run_augmentation
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.evaluate import describe_report, run_evaluation, run_retrieval
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.train import run_encoding, run_warm_up
from rag_jax.systems.session import bind
from rag_jax.systems.stages import corpus_stage

CONFIG = PRAGConfig


def run(config: ConfigDict, workdir: Path, *, worker: Worker | None = None) -> dict[str, Any]:
    """Runs every stage that is not made yet, and writes the report; see `run_session`."""
    session = Session(build(PRAGConfig, config))
    report = describe_report(session.config, session.variants)
    return run_session(session, list_stages(session), workdir, report, worker=worker)


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"weights": session.fingerprint("model.name"), "model": c.model}
    dense = c.retrieve.by == "dense"
    encoder = {"encoder": session.fingerprint("retrieve.encoder.name")} if dense else {}
    asked = {"on": c.evaluate_on, "questions": c.questions, "seed": c.seed}
    training = {**model, "tuning": c.tuning, "seed": c.seed}
    warm_up = Stage(
        "warm_up",
        bind(session, run_warm_up),
        needs=("corpus",),
        settings={**training, "warm_up": c.warm_up},
    )
    encodings = [
        Stage(
            name,
            bind(session, run_encoding, variant=variant, settings=c.encode),
            needs=("corpus", "retrieve", "augment", *["warm_up"] * (variant.start == "warm")),
            settings={**training, "variant": variant, "encode": c.encode, "augment": c.augment},
            shardable=("encoded.jsonl",),
            repairs=True,
        )
        for name, variant in session.variants.items()
    ]
    return [
        corpus_stage(session),
        Stage(
            "retrieve",
            bind(session, run_retrieval),
            needs=("corpus",),
            settings={**asked, **encoder, "retrieve": c.retrieve},
        ),
        Stage(
            "augment",
            bind(session, run_augmentation),
            needs=("corpus", "retrieve"),
            settings={**model, "augment": c.augment, "seed": c.seed},
            shardable=("augmented.jsonl",),
        ),
        *[warm_up] * any("warm_up" in stage.needs for stage in encodings),
        *encodings,
        Stage(
            "evaluate",
            bind(session, run_evaluation),
            needs=("corpus", "retrieve", *session.variants),
            settings={**asked, **model, "answer": c.answer, "passages": c.retrieve.passages},
        ),
    ]
