"""The stages of Self-Routing RAG, from an empty folder to the report."""

from dataclasses import asdict, replace
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.session import make_stage
from rag_jax.systems.srrag.ablations import list_ablations
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import describe_report, run_evaluation
from rag_jax.systems.srrag.label import run_labels
from rag_jax.systems.srrag.policy import run_datastore
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.sources import run_lengths, run_source_indices
from rag_jax.systems.srrag.thresholds import open_reader, run_thresholds
from rag_jax.systems.srrag.train import run_reference, run_stage1, run_stage2
from rag_jax.systems.srrag.verbalise import run_contexts, run_demonstrations
from rag_jax.systems.stages import corpus_stage, likelihood_stages, make_run

CONFIG = SRRAGConfig
# By stage the files whose pieces workers may make.
_DIVISIBLE = {
    "index": ("embeddings.npy",),
    "lengths": ("lengths.npy",),
    "demonstrations": ("documents.jsonl",),
    "contexts": ("verbalised.jsonl",),
    "labels": ("scores.jsonl", "closed_book.jsonl"),
    "reference": ("reference.jsonl",),
    "datastore": ("datastore.npz",),
    "thresholds": ("passes.jsonl",),
    "evaluate": ("answers_direct.jsonl", "passes.jsonl"),
}
# What an evaluation on another dataset takes from the run; the report reads the labels.
TRAINED = ("labels", "stage2", "datastore", "thresholds")
# Stages whose code makes other artefacts from the same settings than it once did.
_VERSIONS = {"demonstrations": 2, "contexts": 2, "evaluate": 3}


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = session.describe_model()
    common = {**model, "seed": c.seed, "train_questions": c.train_questions}
    encoder = {"encoder": session.fingerprint("encoder.name"), **asdict(c.encoder)}
    read = {"max_text": c.model.max_text}
    hits = {**read, **describe_reranking(c.retrieve.rerank)}
    sources = [source for source in c.sources if source.kind == "search"]
    searched = {"index": c.index.describe(), "sources": sources}
    tuning = {"extra_mean": c.extra_mean, "loss_reduction": c.loss_reduction, "tuning": c.tuning}
    training = {**common, **tuning}
    state = {"layer": c.datastore.layer, "metric": c.datastore.metric, "answer": c.answer}
    passes = {**common, **encoder, **state, **read, "max_knowledge": c.verbalise.max_tokens}
    routing = {"k": c.datastore.k, "route": c.route, "questions": c.questions, **hits}
    documents = {**common, **encoder, "verbalise": c.verbalise, "contexts": c.contexts}
    reference = {**training, "microbatch_tokens": c.stage2.microbatch_tokens}
    evaluation = {**passes, **routing, "on": c.evaluate_on}
    rows, pass_needs = ("corpus", "contexts", "labels"), ("corpus", "index", "lengths", "stage2")
    evaluation_needs = (*pass_needs, "datastore", *(["thresholds"] if c.route.is_tuned else []))

    def stage(name: str, function: Any, settings: Any, *needs: str) -> Stage:
        options = {"divisible": _DIVISIBLE.get(name, ()), "version": _VERSIONS.get(name, 1)}
        options |= {"room": session.rooms[name]} if name in session.rooms else {}
        return make_stage(session, name, function, settings, *needs, **options)

    stages = [
        corpus_stage(session),
        stage("index", run_source_indices, {**encoder, **searched}, "corpus"),
        stage("lengths", run_lengths, {**model, **read}, "corpus"),
        stage("demonstrations", run_demonstrations, documents, "corpus"),
        stage("contexts", run_contexts, {**documents, **hits}, "corpus", "index", "demonstrations"),
        stage("labels", run_labels, {**common, "label": c.label}, "corpus", "contexts"),
        stage("stage1", run_stage1, {**training, "stage1": c.stage1}, *rows),
        stage("reference", run_reference, reference, *rows, "stage1"),
        stage("stage2", run_stage2, {**training, "stage2": c.stage2}, *rows, "stage1", "reference"),
        stage("datastore", run_datastore, passes, *pass_needs),
    ]
    if c.route.is_tuned:
        tuned = stage("thresholds", run_thresholds, {**passes, **routing}, *pass_needs, "datastore")
        stages.append(replace(tuned, evaluates=True))
    stages.append(stage("evaluate", run_evaluation, evaluation, *evaluation_needs))
    if c.ablations:
        stages += list_ablations(session, training=training, passes=passes, evaluation=evaluation)
    return [*stages, *likelihood_stages(session, open_reader, {**passes, **hits}, *pass_needs)]


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=TRAINED)
