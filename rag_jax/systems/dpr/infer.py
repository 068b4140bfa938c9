"""Retrieval with a pair of encoders: rankings of passages for questions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.questions import Question
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import Encoders

Ranking = tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]  # scores and rows, best first


def rank_passages(
    encoders: Encoders,
    index: Index,
    questions: Sequence[Question],
    encode: Callable[..., Float[np.ndarray, "N E"]],
    *,
    depth: int,
) -> Ranking:
    """The `depth` passages nearest to each question: their scores, and their rows in the index."""
    asked = [question.question for question in questions]
    queries: Any = encode(encoders.question, asked, "query")
    return index.search(queries, depth)
