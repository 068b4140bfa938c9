"""Asks a finished run of RAG: the passages found, how likely each is, and the answers over all."""

import math
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
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.likelihood import open_threshold
from rag_jax.systems.rag.data import Format, pick_passages
from rag_jax.systems.rag.pipeline import list_stages
from rag_jax.systems.rag.reader import Parts, answer, cite, open_parts, search
from rag_jax.systems.rag.session import Session

_NEEDS = "corpus", "index", "joint"
_SHOWN = 3  # answers


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_finished`."""
    parts = open_finished(session, workdir, corpus)
    parts = parts._replace(engine=replace(parts.engine, batch_size=count_data_rows()))
    return partial(_answer, session, parts, open_threshold(list_stages(session), workdir))


def open_finished(session: Session, workdir: Path, corpus: Path | None) -> Parts:
    """Opens what a finished run answers with; see `open_parts`.

    Raises:
        RagJaxError: as `open_stages` and `open_parts`.
    """
    return open_parts(session, open_stages(list_stages(session), workdir, _NEEDS), corpus)


def count_question(format: Format, question: str) -> int:
    """Number of tokens of a question without passages; a RagJaxError if it is too long."""
    tokens = format.count_tokens(question)
    check_length(tokens, format.max_length)
    return tokens


def _answer(
    session: Session, parts: Parts, threshold: Threshold | None, question: str
) -> Iterator[Item]:
    count_question(parts.engine.format, question)
    scores, rows = search(session, parts, [question])
    citations = cite(parts, rows[0].tolist(), scores[0])
    shown = [(f"{weight:.3f}", name_passage(passage)) for passage, weight in citations]
    yield Facts("passages read, and how likely each is", shown)
    read = pick_passages(parts.passages, rows)
    (answers,) = answer(session, parts.engine, [question], read, scores)
    likeliest = [(f"{math.exp(own.logprob):.3g}", own.text) for own in answers[:_SHOWN]]
    yield Facts("likeliest answers", likeliest)
    best = answers[0]
    yield Piece("answer", best.text)
    yield Outcome(best.text, citations, likelihood=best.likelihood, threshold=threshold)
