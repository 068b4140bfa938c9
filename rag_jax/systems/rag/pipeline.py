"""The stages of retrieval-augmented generation, from an empty folder to the report."""

from dataclasses import replace
from functools import partial

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.rag.ablations import list_ablations
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.curve import run_curve
from rag_jax.systems.rag.evaluate import describe_report, run_evaluation
from rag_jax.systems.rag.hits import run_hits
from rag_jax.systems.rag.memory import run_memory
from rag_jax.systems.rag.reader import open_reader
from rag_jax.systems.rag.session import Session
from rag_jax.systems.rag.train import run_training
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.room import index_room
from rag_jax.systems.session import make_stage
from rag_jax.systems.stages import corpus_stage, likelihood_stages, make_run, run_index

CONFIG = RAGConfig


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
    tested = {**common, "decode": replace(c.decode, curve=()), "tuning": c.tuning}
    evaluation = {**tested, "on": c.evaluate_on, "task": c.task, "bm25": c.bm25}
    if not session.trains:  # no stage of a training has it
        evaluation["marginal"] = c.marginal
    reranked = {**evaluation, **describe_reranking(c.retrieve.rerank)}
    indexing = {"encoder": encoder, "index": c.index.describe()}
    stage, read = partial(make_stage, session), ("corpus", "index")
    load = {"load": lambda context: session.passage_encoder, "divisible": ("embeddings.npy",)}
    load["room"] = lambda: index_room(c.retriever.name, len(session.passages))
    trainings = {"frozen": {**common, **frozen}, "joint": {**common, **training}}
    if not c.train.generator:  # nothing is trained without the retriever
        del trainings["frozen"]
    stages = [
        corpus_stage(session),
        stage("index", run_index, indexing, "corpus", **load),
        *(
            stage(
                name,
                run_training,
                settings,
                *read,
                joint=name == "joint",
                k=c.passages,
                room=partial(session.estimate_training, joint=name == "joint"),
            )
            for name, settings in trainings.items()
        ),
    ]
    if c.train.refresh_every and not session.trains:  # the passages are not those of the training
        again = {**load, "load": session.load_embedder}
        stages.append(stage("refreshed", run_index, indexing, "corpus", "joint", **again))
        read = (*read, "refreshed")
    stages.append(stage("evaluate", run_evaluation, reranked, *read, *trainings))
    if c.decode.curve:
        stages.append(stage("curve", run_curve, {**evaluation, "decode": c.decode}, *read, "joint"))
    if c.ranked_questions:
        ranked = {**common, "on": c.evaluate_on, "questions": c.ranked_questions, "bm25": c.bm25}
        stages.append(stage("hits", run_hits, ranked, *read, *trainings, version=2))
    if c.ablations:
        generator = {"generator": common["generator"], **frozen}
        stages += list_ablations(session, training=generator, evaluation=evaluation)
    if session.has_revisions:
        stages.append(stage("memory", run_memory, {**tested, "world": c.world}, *read, "joint"))
    if c.task != "generation":  # whose answers are not right or wrong
        asking = {**tested, "task": c.task, **describe_reranking(c.retrieve.rerank)}
        stages += likelihood_stages(session, open_reader, asking, *read, "joint")
    return stages


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=("frozen", "joint"))
