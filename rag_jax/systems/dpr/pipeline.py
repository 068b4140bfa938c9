"""The stages of dense passage retrieval, from an empty folder to the report."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import build
from rag_jax.models import Pretrained
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.evaluate import describe_report, run_evaluation
from rag_jax.systems.dpr.session import Session
from rag_jax.systems.dpr.train import run_training
from rag_jax.systems.session import bind
from rag_jax.systems.stages import corpus_stage, run_index, run_negatives

CONFIG = DPRConfig


def run(config: ConfigDict, workdir: Path, *, worker: Worker | None = None) -> dict[str, Any]:
    """Runs every stage that is not made yet, and writes the report; see `run_session`."""
    session = Session(build(DPRConfig, config))
    report = describe_report(session.config)
    return run_session(session, list_stages(session), workdir, report, worker=worker)


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    encoder = {"weights": session.fingerprint("encoder.name"), "encoder": c.encoder}
    index = {"settings": {**encoder, "index": c.index}, "shardable": ("embeddings.npy",)}

    def load_trained(context: StageContext) -> Pretrained:
        return session.load_trained(context.path("train", "")).passage

    return [
        corpus_stage(session),
        Stage(
            "negatives",
            bind(session, run_negatives, depth=c.negatives.depth, count=c.negatives.kept),
            needs=("corpus",),
            settings={"negatives": c.negatives},
        ),
        Stage(
            "untrained",
            bind(session, run_index, load=lambda context: session.untrained.passage, ids=True),
            needs=("corpus",),
            **index,
        ),
        Stage(
            "train",
            bind(session, run_training),
            needs=("corpus", "negatives"),
            settings={**encoder, "train": c.train, "seed": c.seed},
        ),
        Stage(
            "trained",
            bind(session, run_index, load=load_trained, ids=True),
            needs=("corpus", "train"),
            **index,
        ),
        Stage(
            "evaluate",
            bind(session, run_evaluation),
            needs=("corpus", "untrained", "train", "trained"),
            settings={**encoder, "on": c.evaluate_on, "depth": c.depth},
        ),
    ]
