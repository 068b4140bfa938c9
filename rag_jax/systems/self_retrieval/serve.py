"""Serves a finished run of Self-Retrieval: answers from the passage that the model wrote."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.systems.reranking import Reranking
from rag_jax.systems.self_retrieval.ask import check_question, open_engine
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.reader import cite, find, widen
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.served import Answer, Served, make_scoring


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_engine`."""
    engine = open_engine(session, workdir, corpus)
    return Served(
        batch_size=engine.settings.batch_size,
        answer=partial(_answer, engine, session.reranking),
        check=partial(check_question, engine),
        score=make_scoring(session.reranking),
    )


def _answer(engine: Engine, reranking: Reranking | None, questions: Sequence[str]) -> list[Answer]:
    settings = replace(engine.settings, batch_size=len(questions))
    own, answers = replace(widen(engine, questions), settings=settings), []
    for question, found in zip(questions, find(own, reranking, questions), strict=True):
        text, read = found.answer.text, len(engine.format.encode_question(question))
        written = len(engine.format.tokenizer.encode(text))
        answers.append(Answer(text, cite(engine, found), read, written, found.answer.cut_off))
    return answers
