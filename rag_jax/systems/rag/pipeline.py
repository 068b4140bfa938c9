"""The stages of retrieval-augmented generation, from an empty folder to the report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import build
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import Stage
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.evaluate import describe_report, run_evaluation
from rag_jax.systems.rag.memory import run_memory
from rag_jax.systems.rag.session import Session
from rag_jax.systems.rag.train import run_training
from rag_jax.systems.session import bind
from rag_jax.systems.stages import corpus_stage, run_index

CONFIG = RAGConfig


def run(config: ConfigDict, workdir: Path, *, worker: Worker | None = None) -> dict[str, Any]:
    """Runs every stage that is not made yet, and writes the report; see `run_session`."""
    session = Session(build(RAGConfig, config))
    report = describe_report(session.config)
    return run_session(session, list_stages(session), workdir, report, worker=worker)


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    weights = session.fingerprint("retriever.name")
    other = c.retriever.passage_name and session.fingerprint("retriever.passage_name")
    encoder = {"weights": other or weights, "max_length": c.retriever.max_length}
    common = {
        "question": {"weights": weights, "retriever": c.retriever},
        "generator": {"weights": session.fingerprint("generator.name"), "generator": c.generator},
        "passages": c.passages,
    }
    training = {"train": c.train, "tuning": c.tuning, "marginal": c.marginal, "seed": c.seed}
    # Without training of the retriever, the settings of that training do not matter.
    frozen = {**training, "train": replace(c.train, refresh_every=0, retriever_rate=1.0)}
    tested = {**common, "decode": c.decode, "tuning": c.tuning}
    stages = [
        corpus_stage(session),
        Stage(
            "index",
            bind(session, run_index, load=lambda context: session.passage_encoder),
            needs=("corpus",),
            settings={"encoder": encoder, "index": c.index},
            shardable=("embeddings.npy",),
        ),
        Stage(
            "frozen",
            bind(session, run_training, joint=False, k=c.passages),
            needs=("corpus", "index"),
            settings={**common, **frozen},
        ),
        Stage(
            "joint",
            bind(session, run_training, joint=True, k=c.passages),
            needs=("corpus", "index"),
            settings={**common, **training},
        ),
        Stage(
            "evaluate",
            bind(session, run_evaluation),
            needs=("corpus", "index", "frozen", "joint"),
            settings={**tested, "on": c.evaluate_on, "task": c.task},
        ),
    ]
    if session.has_revisions:
        memory, settings = bind(session, run_memory), {**tested, "world": c.world}
        stages.append(Stage("memory", memory, settings, needs=("corpus", "index", "joint")))
    return stages
