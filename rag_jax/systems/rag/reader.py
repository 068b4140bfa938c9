"""What a run answers with: its search and its generator, as they were trained together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.pipeline.citations import Citation
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.systems.likelihood import Reader
from rag_jax.systems.rag.data import PassageText, pick_passages
from rag_jax.systems.rag.evaluate import choose_way
from rag_jax.systems.rag.infer import Answer, Engine
from rag_jax.systems.rag.rankings import Ranking, reorder
from rag_jax.systems.rag.session import Session
from rag_jax.systems.stages import list_ranked


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


def open_parts(session: Session, context: StageContext, corpus: Path | None) -> Parts:
    """Opens a run's generator, both encoders and index, as they were trained together.

    Args:
        context: of a stage that needs the stages "corpus", "index" and "joint".
        corpus: passages to search in place of the run's.

    Raises:
        RagJaxError: the corpus cannot be read.
    """
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


def search(session: Session, parts: Parts, questions: Sequence[str]) -> Ranking:
    """The passages that are read for each question: as found or, with a reranker, reranked."""
    index, reranking = parts.index, session.reranking
    count = min(session.config.passages_read, index.size)
    wanted = count if reranking is None else reranking.count(count, index.size)
    scores, rows = index.search(session.encode_queries(parts.query, questions), wanted)
    scores = session.config.retriever.scale * scores
    if reranking is None:
        return Ranking(scores, rows)
    found = list_ranked(scores, rows)
    ranked = reranking.order(questions, found, parts.passages)
    return reorder(found, [own[:count] for own in ranked])


def cite(parts: Parts, rows: Sequence[int], scores: Float[np.ndarray, "K"]) -> list[Citation]:
    """The passages of a question's ranking, each with its `p(z|x)`."""
    weights = np.exp(scores - np.logaddexp.reduce(scores)).tolist()
    pairs = zip(rows, weights, strict=True)
    return [Citation(parts.passages[row], weight) for row, weight in pairs if row >= 0]


def answer(
    session: Session,
    engine: Engine,
    questions: Sequence[str],
    read: Sequence[Sequence[PassageText]],
    scores: Float[np.ndarray, "N K"],
) -> list[list[Answer]]:
    """Each question's answers from what was read, best first; or labels, by their probability.

    Args:
        scores: logits of `p(z|x)`.
    """
    if not (labels := session.labels):
        way = choose_way(session.config)
        return engine.answer(questions, read, scores, ways=[way])[way]
    chances = engine.classify(questions, read, scores, labels)
    logprobs = np.log(np.maximum(chances, np.finfo(chances.dtype).tiny))
    # A label is one choice, whatever its number of tokens.
    return [
        [Answer(labels[i], float(own[i]), 1) for i in np.argsort(-own, kind="stable")]
        for own in logprobs
    ]


def open_reader(context: StageContext, session: Session) -> Reader:
    """The reader that the threshold of likelihood is chosen for."""
    parts = open_parts(session, context, None)

    def read(questions: Sequence[str]) -> list[tuple[str, float | None]]:
        scores, rows = search(session, parts, questions)
        found = pick_passages(parts.passages, rows)
        answers = answer(session, parts.engine, questions, found, scores)
        return [(best[0].text, best[0].likelihood) for best in answers]

    return Reader(read)
