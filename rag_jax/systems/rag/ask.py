"""Asks a finished run of RAG: the passages found, how likely each is, and the answers over all."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.pipeline.ask import Ask, Facts, Piece, name_passage
from rag_jax.pipeline.runner import open_stages
from rag_jax.retrieval import Index
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.evaluate import choose_way
from rag_jax.systems.rag.infer import Engine
from rag_jax.systems.rag.pipeline import list_stages
from rag_jax.systems.rag.rankings import Ranking, reorder
from rag_jax.systems.rag.session import Session
from rag_jax.systems.stages import list_ranked

_SHOWN = 3  # answers


class Parts(NamedTuple):
    """What a finished run has open.

    Attributes:
        query: the encoder of questions.
        passage: the encoder that embedded the passages.
    """

    engine: Engine
    query: Pretrained
    passage: Pretrained
    index: Index
    passages: Sequence[Passage]


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_parts`."""
    parts = open_parts(session, workdir, corpus)
    engine = replace(parts.engine, batch_size=count_data_rows())
    found = parts.index, parts.passages, session.labels
    return partial(_answer, session, engine, parts.query, *found)


def open_parts(session: Session, workdir: Path, corpus: Path | None) -> Parts:
    """Opens a run's generator, both encoders and index, as they were trained together.

    Args:
        corpus: passages to search in place of the run's.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    context = open_stages(list_stages(session), workdir, ("corpus", "index", "joint"))
    session.open_corpus(context.path("corpus", ""))
    trained = session.load_trained(context, "joint")
    engine = session.make_engine(trained["generator"])
    index, encoder = session.open_final_index(context, trained)
    passages = session.passages
    if corpus is not None:
        passages, embeddings = session.read_corpus(corpus, encoder)
        index = session.build_corpus_index(embeddings, passages)
    query = replace(session.encoder, params=trained["query"])
    return Parts(engine, query, encoder, index, passages)


def search(
    session: Session,
    query: Pretrained,
    index: Index,
    passages: Sequence[Passage],
    questions: Sequence[str],
) -> Ranking:
    """The passages that are read for each question: as found or, with a reranker, as it has them.

    Args:
        query: the encoder of questions.
    """
    count, reranking = min(session.config.passages_read, index.size), session.reranking
    wanted = count if reranking is None else reranking.count(count, index.size)
    scores, rows = index.search(session.encode_queries(query, questions), wanted)
    scores = session.config.retriever.scale * scores
    if reranking is None:
        return Ranking(scores, rows)
    found = list_ranked(scores, rows)
    ranked = reranking.order(questions, found, passages)
    return reorder(found, [own[:count] for own in ranked])


def _answer(
    session: Session,
    engine: Engine,
    query: Pretrained,
    index: Index,
    passages: Sequence[Passage],
    labels: Sequence[str],
    question: str,
) -> Iterator[Facts | Piece]:
    engine.format.encode_input(question, None)  # refuses a question that is too long
    way = choose_way(session.config)
    scores, rows = search(session, query, index, passages, [question])
    weights = np.exp(scores[0] - np.logaddexp.reduce(scores[0]))
    found = zip(weights, rows[0].tolist(), strict=True)
    shown = [(f"{weight:.3f}", name_passage(passages[row])) for weight, row in found]
    yield Facts("passages read, and how likely each is", shown)
    read = pick_passages(passages, rows)
    if labels:
        (chances,) = engine.classify([question], read, scores, labels)
        answers = sorted(zip(chances.tolist(), labels, strict=True), reverse=True)
    else:
        (best,) = engine.answer([question], read, scores, ways=[way])[way]
        answers = [(math.exp(logprob), text) for text, logprob in best]
    yield Facts("likeliest answers", [(f"{chance:.3g}", text) for chance, text in answers[:_SHOWN]])
    yield Piece("answer", answers[0][1])
