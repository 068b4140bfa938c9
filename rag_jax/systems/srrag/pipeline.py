"""The stages of Self-Routing RAG, from an empty folder to the report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import build
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import Stage
from rag_jax.systems.session import bind
from rag_jax.systems.srrag.ablations import list_ablations
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import describe_report, run_evaluation
from rag_jax.systems.srrag.label import run_labels
from rag_jax.systems.srrag.policy import run_datastore
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import run_lengths, run_source_indices
from rag_jax.systems.srrag.train import run_reference, run_stage1, run_stage2
from rag_jax.systems.srrag.verbalise import run_contexts, run_demonstrations
from rag_jax.systems.stages import corpus_stage

CONFIG = SRRAGConfig


def run(config: ConfigDict, workdir: Path, *, worker: Worker | None = None) -> dict[str, Any]:
    """Runs every stage that is not made yet, and writes the report; see `run_session`."""
    session = Session(build(SRRAGConfig, config))
    report = describe_report(session.config)
    return run_session(session, list_stages(session), workdir, report, worker=worker)


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"model": session.model_fingerprint, "dtype": c.model.dtype, "sources": c.sources}
    common = {**model, "seed": c.seed, "train_questions": c.train_questions}
    encoder = {"encoder": session.fingerprint("encoder.name"), **asdict(c.encoder)}
    read, searched = {"max_text": c.model.max_text}, [s for s in c.sources if s.kind == "search"]
    tuning = {"extra_mean": c.extra_mean, "loss_reduction": c.loss_reduction, "tuning": c.tuning}
    training = {**common, **tuning}
    state = {"layer": c.datastore.layer, "metric": c.datastore.metric, "answer": c.answer}
    passes = {**common, **encoder, **state, **read, "max_knowledge": c.verbalise.max_tokens}
    asked = {"k": c.datastore.k, "route": c.route, "on": c.evaluate_on, "questions": c.questions}
    contexts = {**common, **encoder, "verbalise": c.verbalise, "contexts": c.contexts}
    rows, pass_needs = ("corpus", "contexts", "labels"), ("corpus", "index", "lengths", "stage2")

    def stage(name: str, function: Any, settings: Any, *needs: str, shardable: Any = ()) -> Stage:
        return Stage(name, bind(session, function), settings, needs, shardable=shardable)

    stages = [
        corpus_stage(session),
        stage("index", run_source_indices, {**encoder, "index": c.index, "sources": searched},
              "corpus", shardable=("embeddings.npy",)),
        stage("lengths", run_lengths, {**model, **read}, "corpus", shardable=("lengths.npy",)),
        stage("demonstrations", run_demonstrations, contexts,
              "corpus", shardable=("documents.jsonl",)),
        stage("contexts", run_contexts, {**contexts, **read},
              "corpus", "index", "demonstrations", shardable=("verbalised.jsonl",)),
        stage("labels", run_labels, {**common, "label": c.label},
              "corpus", "contexts", shardable=("scores.jsonl", "closed_book.jsonl")),
        stage("stage1", run_stage1, {**training, "stage1": c.stage1}, *rows),
        stage("reference", run_reference,
              {**training, "microbatch_tokens": c.stage2.microbatch_tokens},
              *rows, "stage1", shardable=("reference.jsonl",)),
        stage("stage2", run_stage2, {**training, "stage2": c.stage2},
              *rows, "stage1", "reference"),
        stage("datastore", run_datastore, passes, *pass_needs, shardable=("datastore.npz",)),
        stage("evaluate", run_evaluation, {**passes, **asked}, *pass_needs, "datastore",
              shardable=("answers_direct.jsonl", "passes.jsonl")),
    ]  # fmt: skip
    if c.ablations:
        evaluation = {**passes, **asked}
        stages += list_ablations(session, training=training, passes=passes, evaluation=evaluation)
    return stages
