"""Serves a finished run of RAG: answers marginalised over passages, and both encoders."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import list_widths, round_up
from rag_jax.systems.rag.ask import count_question, open_finished
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.reader import Parts, answer, cite, search
from rag_jax.systems.rag.session import Session
from rag_jax.systems.served import Answer, Served, make_embedding, make_scoring


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_finished`."""
    parts = open_finished(session, workdir, corpus)
    # Two widths, whatever passages are found: a program is compiled for each.
    multiple = round_up(parts.engine.format.max_length, 64) // 2
    parts = parts._replace(engine=replace(parts.engine, multiple=multiple))
    session.query_widths = list_widths(session.encoding.max_length)

    def check(question: str) -> int:
        return count_question(parts.engine.format, question)

    return Served(
        batch_size=session.config.decode.batch_size,
        answer=partial(_answer, session, parts),
        check=check,
        embed=make_embedding(session, query=parts.query, document=parts.passage),
        score=make_scoring(session.reranking),
    )


def _answer(session: Session, parts: Parts, questions: Sequence[str]) -> list[Answer]:
    engine, format = replace(parts.engine, batch_size=len(questions)), parts.engine.format
    scores, rows = search(session, parts, questions)
    read = pick_passages(parts.passages, rows)
    answers = answer(session, engine, questions, read, scores)
    columns = questions, answers, map(cite, [parts] * len(rows), rows.tolist(), scores), read
    return [
        Answer(
            best[0].text,
            citations,
            sum(len(format.encode_input(question, passage)[0]) for passage in own),
            len(format.tokenizer.encode(best[0].text)),
            best[0].cut_off,
        )
        for question, best, citations, own in zip(*columns, strict=True)
    ]
