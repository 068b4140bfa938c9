"""The stages of Self-Retrieval, from an empty folder to the report."""

from functools import partial
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.room import encoder_room, tuning_room
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.evaluate import ABLATIONS, describe_report, run_evaluation
from rag_jax.systems.self_retrieval.index import run_titled_corpus, run_trie
from rag_jax.systems.self_retrieval.reader import open_reader
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.self_retrieval.train import run_dense_training, run_indexing, run_training
from rag_jax.systems.session import bind, make_stage
from rag_jax.systems.stages import likelihood_stages, make_run, run_negatives

CONFIG = SelfRetrievalConfig
# The settings of `ExamplesConfig` that the first run reads: it is kept when others change.
_INDEXING = ("target", "prefix_words", "indexing_sentences")
_DEPTH = 100  # passages that BM25 ranks to find hard negatives


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"weights": session.fingerprint("model.name"), "model": c.model}
    learning = {"examples": c.examples, "train": c.train, "tuning": c.tuning, "seed": c.seed}
    if c.validation:  # without `c.search`: other settings of it train no other model
        learning["validation"] = c.validation
    dense = {"weights": session.fingerprint("dense.encoder.name"), "dense": c.dense}
    # Some mined passages may be of the relevant documents, whose negatives are chosen otherwise.
    kept = max(c.dense.hard, 4 * c.examples.other)
    stage, room = partial(make_stage, session), partial(tuning_room, c.tuning, c.model.name)

    def trie(name: str, *, titled: bool) -> Stage:
        return stage(name, run_trie, model, "corpus", version=2, titled=titled)

    def read_trie(titled: bool) -> tuple[str, ...]:
        return ("trie" if titled else "trie_untitled",) if c.validation else ()

    def train(name: str, *needs: str, titled: bool = True, **options: Any) -> Stage:
        needs = "corpus", "negatives", *needs, *read_trie(titled)
        options |= {"version": 2, "room": room, "titled": titled}
        return stage(name, run_training, {**model, **learning}, *needs, **options)

    def train_twice(first: str, second: str, *, titled: bool) -> list[Stage]:
        """The run on sentences alone, where there is one, and after it the run on the mix."""
        if not c.indexing.epochs:
            return [train(second, titled=titled)]
        read = {name: getattr(c.examples, name) for name in _INDEXING}
        settings = {**model, **learning, "examples": read, "train": c.indexing}
        options = {"titled": titled, "room": room}
        indexing = stage(first, run_indexing, settings, "corpus", *read_trie(titled), **options)
        return [indexing, train(second, first, start=first, titled=titled)]

    corpus, source = bind(session, run_titled_corpus), {**session.source, **model}
    mining, mined = {"kept": kept, "bm25": c.bm25}, {"depth": _DEPTH, "count": kept}
    full = train_twice("indexing", "train", titled=True)
    tuned, dense_room = {**dense, "seed": c.seed}, partial(encoder_room, c.dense.encoder.name)
    stages = [
        Stage("corpus", corpus, source, version=2, check=session.check_stage),
        stage("negatives", run_negatives, mining, "corpus", version=2, **mined),
        trie("trie", titled=True),
        *full,
        stage("dense_tuned", run_dense_training, tuned, "corpus", "negatives", room=dense_room),
    ]
    evaluated = ("corpus", "trie", "train", "dense_tuned")
    if c.ablations:
        trained = [stage.name for stage in full]
        stages += [
            trie("trie_untitled", titled=False),
            train("without_indexing", *trained, instead_of=trained),
            *train_twice("indexing_untitled", "without_titles", titled=False),
        ]
        evaluated += ("trie_untitled", *ABLATIONS)
    evaluation = {"search": c.search, "on": c.evaluate_on, "examples": c.examples}
    evaluation |= {"bm25": c.bm25, **describe_reranking(c.retrieve.rerank)}
    if not session.trains:  # no stage of a training has it
        evaluation |= {"weights": dense["weights"], "dense": c.dense.encoder}
    stages.append(stage("evaluate", run_evaluation, evaluation, *evaluated))
    asking = {"search": c.search, "examples": c.examples, **describe_reranking(c.retrieve.rerank)}
    needed = "corpus", "trie", "train"
    return [*stages, *likelihood_stages(session, open_reader, asking, *needed)]


_SYSTEM = CONFIG, Session, list_stages, describe_report
run = make_run(*_SYSTEM)
evaluate_on = make_evaluation(*_SYSTEM, trained=("train", "dense_tuned"))
