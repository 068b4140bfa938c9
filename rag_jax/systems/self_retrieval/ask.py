"""Asks a finished run of Self-Retrieval: the passages it writes, how it judges them, its answer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.passages import Passage
from rag_jax.pipeline.ask import Ask, Facts, Note, Piece, check_length, name_passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.evaluate import make_engine, rank
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.pipeline import Session
from rag_jax.systems.self_retrieval.scores import score

__all__ = ["CONFIG", "Session", "open_run"]

CONFIG = SelfRetrievalConfig
_SHOWN = 5  # passages


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Reads a run's model, passages and trie.

    Raises:
        RagJaxError: as `open_stages`, or another corpus is given.
    """
    if corpus is not None:
        raise RagJaxError(
            f"--corpus={corpus}: the corpus of Self-Retrieval is in its weights; train on the "
            "passages with --config.data.path instead"
        )
    context = open_stages(session.stages(), workdir, ("corpus", "trie", "train"))
    collection = session.read_corpus(context)
    engine = make_engine(session, context, collection, "train", titled=True)
    settings = replace(engine.settings, batch_size=count_data_rows())
    return partial(_answer, replace(engine, settings=settings))


def _answer(engine: Engine, question: str) -> Iterator[Facts | Piece | Note]:
    form, settings = engine.form, engine.settings
    cues = len(form.encode_reading(Passage("", "", ""))) + len(form.encode_accept())
    behind = engine.trie.depth + cues + settings.max_answer
    limit = engine.model.config.max_length - behind
    check_length(len(form.encode_question(question)), limit)
    ((groups, answer),) = engine.retrieve([question])
    rejected = {row: c.reject for group in groups for c in group for row in c.rows}
    ranked = rank(groups, score(groups, settings))[:_SHOWN]
    rows = [("score", "rejected", "")]
    for row, value in ranked:
        passage = name_passage(engine.passages[row])
        rows.append((f"{value:.3f}", f"{rejected[row]:.3f}", passage))
    yield Facts("passages written", rows)
    yield Piece("answer", answer)
