"""Serves a finished run of SR-RAG: each question answered from the source that is chosen for it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.batches import list_widths
from rag_jax.pipeline.ask import check_length
from rag_jax.systems.served import Answer, Served, make_embedding, make_scoring
from rag_jax.systems.srrag.ask import open_parts
from rag_jax.systems.srrag.infer import Engine, cite
from rag_jax.systems.srrag.passes import choose, route
from rag_jax.systems.srrag.policy import Datastore
from rag_jax.systems.srrag.session import Session


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_parts`."""
    engine, datastore, tau = open_parts(session, workdir, corpus)
    session.query_widths = list_widths(session.encoding.max_length)

    def check(question: str) -> int:
        tokens = len(engine.format.encode_question(question))
        check_length(tokens, engine.room)
        return tokens

    return Served(
        batch_size=engine.batch_size,
        answer=partial(_answer, session, engine, datastore, tau),
        check=check,
        embed=make_embedding(session, query=session.encoder, document=session.encoder),
        score=make_scoring(session.reranking),
    )


def _answer(
    session: Session, engine: Engine, datastore: Datastore, tau: float, questions: Sequence[str]
) -> list[Answer]:
    found: dict[str, list[tuple[str, str]]] = {}

    def search(source: int, asked: Sequence[str]) -> list[list[tuple[str, str]]]:
        passages = engine.search(source, asked)
        found.update(zip(asked, passages, strict=True))
        return passages

    noting = replace(engine, batch_size=len(questions), search=search)
    beliefs = route(noting, datastore, session.config, questions)
    chosen = choose(session.config, beliefs.probabilities, beliefs.votes, tau)
    rows = noting.answer_questions(beliefs.routed, range(len(questions)), chosen, questions)
    return [
        Answer(
            rows[i]["prediction"],
            cite(found.get(question, ())),
            rows[i]["prompt_tokens"],
            rows[i]["generated_tokens"],
            rows[i]["answer_cut_off"],
        )
        for i, question in enumerate(questions)
    ]
