"""Serves a finished run of Self-Retrieval: answers from the passage that the model wrote."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import double_up
from rag_jax.systems.self_retrieval.ask import check_question, open_engine, rank_found
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.served import Answer, Served


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_engine`."""
    engine = open_engine(session, workdir, corpus)
    return Served(
        batch_size=engine.settings.batch_size,
        answer=partial(_answer, engine),
        check=partial(check_question, engine),
    )


def _answer(engine: Engine, questions: Sequence[str]) -> list[Answer]:
    settings = replace(engine.settings, batch_size=len(questions))
    counts = [len(engine.format.encode_question(question)) for question in questions]
    # Few widths: the programs after a question are compiled for each.
    own = replace(engine, settings=settings, width=double_up(max(counts), 32))
    answers = []
    for read, (groups, text) in zip(counts, own.retrieve(questions), strict=True):
        # The answer continues from the best passage alone.
        row, _ = rank_found(engine, groups)[0]
        written = len(engine.format.tokenizer.encode(text))
        answers.append(Answer(text, [engine.passages[row]], read, written))
    return answers
