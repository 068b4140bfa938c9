"""Asks a finished run of Self-Retrieval: passages generated, their assessment, the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import rank_hits
from rag_jax.pipeline.ask import Ask, Facts, Note, Piece, check_length, name_passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.self_retrieval.evaluate import rank
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.pipeline import list_stages
from rag_jax.systems.self_retrieval.scores import Candidate, score
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.stages import Ranked

_SHOWN = 5  # passages


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_engine`."""
    engine = open_engine(session, workdir, corpus)
    settings = replace(engine.settings, batch_size=count_data_rows())
    return partial(_answer, replace(engine, settings=settings))


def open_engine(session: Session, workdir: Path, corpus: Path | None) -> Engine:
    """Opens a run's model, passages and trie.

    Raises:
        RagJaxError: as `open_stages`, or another corpus is given.
    """
    if corpus is not None:
        raise RagJaxError(
            f"--corpus={corpus}: the corpus of Self-Retrieval is in its weights; train on the "
            "passages with --config.data.path instead"
        )
    context = open_stages(list_stages(session), workdir, ("corpus", "trie", "train"))
    session.open_corpus(context.path("corpus", ""))
    return session.open_engine(context, "train")


def check_question(engine: Engine, question: str) -> int:
    """The number of tokens of a question; raises a RagJaxError if the model has no room for it."""
    format = engine.format
    cues = len(format.encode_reading(Passage("", "", ""))) + len(format.encode_accept())
    after = engine.trie.depth + cues + engine.settings.max_answer
    tokens = len(format.encode_question(question))
    check_length(tokens, engine.model.config.max_length - after)
    return tokens


def rank_found(engine: Engine, groups: Sequence[Sequence[Candidate]]) -> Ranked:
    """The rows and scores of the passages that were found for a question, best first."""
    found = rank(groups, score(groups, engine.settings))
    return rank_hits(Question("", "", (), {}), found, lambda row: engine.passages[row].id)


def _answer(engine: Engine, question: str) -> Iterator[Facts | Piece | Note]:
    check_question(engine, question)
    ((groups, answer),) = engine.retrieve([question])
    rejected = {row: c.reject for group in groups for c in group for row in c.rows}
    ranked = rank_found(engine, groups)
    shown = [
        (f"{value:.3f}", f"{rejected[row]:.3f}", name_passage(engine.passages[row]))
        for row, value in ranked[:_SHOWN]
    ]
    yield Facts("passages written", [("score", "rejected", ""), *shown])
    yield Piece("answer", answer)
