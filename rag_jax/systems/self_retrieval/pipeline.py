"""The stages of Self-Retrieval, from an empty folder to the report."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import build
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import Stage
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.evaluate import ABLATIONS, describe_report, run_evaluation
from rag_jax.systems.self_retrieval.index import run_titled_corpus, run_trie
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.self_retrieval.train import run_dense_training, run_training
from rag_jax.systems.session import bind
from rag_jax.systems.stages import run_negatives

CONFIG = SelfRetrievalConfig
_DEPTH = 100  # passages that BM25 ranks to find hard negatives


def run(config: ConfigDict, workdir: Path, *, worker: Worker | None = None) -> dict[str, Any]:
    """Runs every stage that is not made yet, and writes the report; see `run_session`."""
    session = Session(build(SelfRetrievalConfig, config))
    report = describe_report(session.config)
    return run_session(session, list_stages(session), workdir, report, worker=worker)


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"weights": session.fingerprint("model.name"), "model": c.model}
    training = {
        "needs": ("corpus", "negatives"),
        "settings": {
            **model,
            "examples": c.examples,
            "train": c.train,
            "tuning": c.tuning,
            "seed": c.seed,
        },
    }
    encoder = {"weights": session.fingerprint("dense.encoder.name")}
    # Some mined passages may be of the relevant documents, whose negatives are chosen otherwise.
    kept = max(c.dense.hard, 4 * c.examples.other)
    trie = {"needs": ("corpus",), "settings": model}
    stages = [
        Stage(
            "corpus",
            bind(session, run_titled_corpus),
            settings={**session.source, **model},
            version=2,
        ),
        Stage(
            "negatives",
            bind(session, run_negatives, depth=_DEPTH, count=kept),
            needs=("corpus",),
            settings={"kept": kept},
        ),
        Stage("trie", bind(session, run_trie, titled=True), **trie),
        Stage("train", bind(session, run_training), **training),
        Stage(
            "dense_tuned",
            bind(session, run_dense_training),
            needs=("corpus", "negatives"),
            settings={**encoder, "dense": c.dense, "seed": c.seed},
        ),
    ]
    evaluated = ("corpus", "trie", "train", "dense_tuned")
    if c.ablations:
        stages += [
            Stage("trie_untitled", bind(session, run_trie, titled=False), **trie),
            Stage("without_indexing", bind(session, run_training, indexing=False), **training),
            Stage("without_titles", bind(session, run_training, titled=False), **training),
        ]
        evaluated += ("trie_untitled", *ABLATIONS)
    evaluation = {"search": c.search, "on": c.evaluate_on, "examples": c.examples}
    evaluate = bind(session, run_evaluation)
    return [*stages, Stage("evaluate", evaluate, needs=evaluated, settings=evaluation)]
