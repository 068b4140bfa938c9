"""Asks a finished run of Self-Retrieval: passages generated, their assessment, the answer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.pipeline.ask import (
    Ask,
    Facts,
    Item,
    Outcome,
    Piece,
    Threshold,
    check_length,
    name_passage,
)
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.likelihood import open_threshold
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.pipeline import list_stages
from rag_jax.systems.self_retrieval.reader import cite, find
from rag_jax.systems.self_retrieval.session import Session

_SHOWN = 5  # passages


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_engine`."""
    engine = open_engine(session, workdir, corpus)
    settings = replace(engine.settings, batch_size=count_data_rows())
    threshold = open_threshold(list_stages(session), workdir)
    return partial(_answer, replace(engine, settings=settings), session.reranking, threshold)


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
    tokens = len(engine.format.encode_question(question))
    check_length(tokens, engine.model.config.max_length - engine.room)
    return tokens


def _answer(
    engine: Engine, reranking: Reranking | None, threshold: Threshold | None, question: str
) -> Iterator[Item]:
    check_question(engine, question)
    (found,) = find(engine, reranking, [question])
    rejected = {row: c.reject for group in found.groups for c in group for row in c.rows}
    shown = [
        (f"{value:.3f}", f"{rejected[row]:.3f}", name_passage(engine.passages[row]))
        for row, value in found.ranked[:_SHOWN]
    ]
    yield Facts("passages written", [("score", "rejected", ""), *shown])
    answer, likelihood, _ = found.answer
    yield Piece("answer", answer)
    verdict = {"likelihood": likelihood, "threshold": threshold}
    yield Outcome(answer, cite(engine, found), **verdict)
