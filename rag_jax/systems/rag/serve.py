"""Serves a finished run of RAG: answers marginalised over passages, and both encoders."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import list_widths, round_up
from rag_jax.systems.rag.ask import Parts, open_parts, search
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.evaluate import choose_way
from rag_jax.systems.rag.session import Session
from rag_jax.systems.served import Answer, Served, make_embedding, make_scoring


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_parts`."""
    parts = open_parts(session, workdir, corpus)
    # Two widths, whatever passages are found: a program is compiled for each.
    multiple = round_up(parts.engine.format.max_length, 64) // 2
    parts = parts._replace(engine=replace(parts.engine, multiple=multiple))
    session.query_widths = list_widths(session.encoding.max_length)
    labels = session.labels

    def check(question: str) -> int:
        return len(parts.engine.format.encode_input(question, None)[0])

    return Served(
        batch_size=session.config.decode.batch_size,
        answer=partial(_answer, session, parts, labels),
        check=check,
        embed=make_embedding(session, query=parts.query, document=parts.passage),
        score=make_scoring(session.reranking),
    )


def _answer(
    session: Session, parts: Parts, labels: Sequence[str], questions: Sequence[str]
) -> list[Answer]:
    way = choose_way(session.config)
    engine = replace(parts.engine, batch_size=len(questions))
    scores, rows = search(session, parts.query, parts.index, parts.passages, questions)
    read = pick_passages(parts.passages, rows)
    if labels:
        best = engine.classify(questions, read, scores, labels).argmax(axis=1)
        texts = [labels[i] for i in best]
    else:
        texts = [best[0][0] for best in engine.answer(questions, read, scores, ways=[way])[way]]
    format = engine.format
    return [
        Answer(
            text,
            [parts.passages[row] for row in found if row >= 0],
            sum(len(format.encode_input(question, passage)[0]) for passage in own),
            len(format.tokenizer.encode(text)),
        )
        for question, text, found, own in zip(questions, texts, rows.tolist(), read, strict=True)
    ]
