"""Asks a finished run of Self-Retrieval: passages generated, their assessment, the answer."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import rank_hits
from rag_jax.pipeline.ask import Ask, Facts, Note, Piece, check_length, name_passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.self_retrieval.evaluate import rank
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.pipeline import list_stages
from rag_jax.systems.self_retrieval.scores import score
from rag_jax.systems.self_retrieval.session import Session

_SHOWN = 5  # passages


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
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
    engine = session.open_engine(context, "train")
    settings = replace(engine.settings, batch_size=count_data_rows())
    return partial(_answer, replace(engine, settings=settings), session.reranking)


def _answer(
    engine: Engine, reranking: Reranking | None, question: str
) -> Iterator[Facts | Piece | Note]:
    format, settings = engine.format, engine.settings
    cues = len(format.encode_reading(Passage("", "", ""))) + len(format.encode_accept())
    after = engine.trie.depth + cues + settings.max_answer
    check_length(len(format.encode_question(question)), engine.model.config.max_length - after)
    ((groups, answer),) = engine.retrieve([question])
    rejected = {row: c.reject for group in groups for c in group for row in c.rows}
    found = rank(groups, score(groups, settings))
    get_id = lambda row: engine.passages[row].id  # noqa: E731
    order = partial(rank_hits, Question("", question, (), {}), get_id=get_id)
    ranked = order(found)
    if reranking is not None:
        ranked = order(*reranking.order([question], [ranked], engine.passages))
        (answer,) = engine.answer([question], [ranked[0][0]])
    shown = [
        (f"{value:.3f}", f"{rejected[row]:.3f}", name_passage(engine.passages[row]))
        for row, value in ranked[:_SHOWN]
    ]
    yield Facts("passages written", [("score", "rejected", ""), *shown])
    yield Piece("answer", answer)
