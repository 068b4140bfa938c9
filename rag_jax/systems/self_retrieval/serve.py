"""Serves a finished run of Self-Retrieval: answers from the passage that the model wrote."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import double_up
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.self_retrieval.ask import check_question, find, open_engine
from rag_jax.systems.self_retrieval.infer import Engine
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
    counts = [len(engine.format.encode_question(question)) for question in questions]
    # Few widths: the programs after a question are compiled for each.
    own = replace(engine, settings=settings, width=double_up(max(counts), 32))
    answers = []
    for read, (_, ranked, text) in zip(counts, find(own, reranking, questions), strict=True):
        row, _ = ranked[0]  # the passage that the answer continues from
        written = len(engine.format.tokenizer.encode(text))
        answers.append(Answer(text, [engine.passages[row]], read, written))
    return answers
