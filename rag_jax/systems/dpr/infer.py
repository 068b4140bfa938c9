"""Retrieval with a pair of encoders: the index over the passages, and rankings for questions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.stages import embed_corpus

Ranking = tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]  # scores and rows, best first


def run_index(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    load: Callable[[StageContext], Encoders],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    build_index: Callable[..., Index],
) -> None:
    """Embeds the passages and indexes them.

    Args:
        load: opens the encoders.
    """
    encoder = load(context).passage
    embeddings = embed_corpus(context, passages, lambda part: encode_passages(encoder, part))
    if is_first():
        build_index(encoder, embeddings, passages, ids=True).save(context.folder / "index")


def rank_passages(
    encoders: Encoders,
    index: Index,
    questions: Sequence[Question],
    encode: Callable[..., Float[np.ndarray, "N E"]],
    *,
    depth: int,
) -> Ranking:
    """The `depth` passages nearest to each question: their scores, and their rows in the index."""
    queries: Any = encode(encoders.question, [question.question for question in questions])
    return index.search(queries, depth)
