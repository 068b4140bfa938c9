"""Serves a finished run of dense passage retrieval: embeddings by both trained encoders."""

from pathlib import Path

from rag_jax.systems.dpr.ask import open_parts
from rag_jax.systems.dpr.session import Session
from rag_jax.systems.served import Served, make_embedding, make_scoring


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Served:
    """Opens a run; see `ask.open_parts`. There are no answers: nothing is generated."""
    encoders, *_ = open_parts(session, workdir, corpus)
    embed = make_embedding(session, query=encoders.question, document=encoders.passage)
    return Served(embed=embed, score=make_scoring(session.reranking))
