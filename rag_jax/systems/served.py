"""What a finished run offers to a server: answers, embeddings and scores, of many at a time.

A system's `serve.py` opens a work folder and gives a `Served`. Its functions are called by one
thread, within the run's mesh.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rag_jax.data.batches import list_widths
from rag_jax.models import Pretrained
from rag_jax.pipeline.citations import Citation
from rag_jax.retrieval.rerank import score_pairs
from rag_jax.retrieval.texts import Role, read_texts
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.session import Session


class Answer(NamedTuple):
    """An answer and what it cost.

    Attributes:
        citations: the passages that the answer rests on, best first.
        prompt_tokens: number of tokens that were read.
        written_tokens: number of tokens that were written.
        cut_off: whether the answer has as many tokens as the run's limit.
    """

    text: str
    citations: Sequence[Citation]
    prompt_tokens: int
    written_tokens: int
    cut_off: bool = False


class Embedded(NamedTuple):
    """Embeddings of texts, and the number of tokens that were read of each."""

    vectors: Float[np.ndarray, "N E"]
    tokens: Sequence[int]


# Questions to their answers. A program is compiled for each number of questions.
Answering = Callable[[Sequence[str]], list[Answer]]
Embedding = Callable[[Sequence[str], Role], Embedded]
# (question, passage) pairs to scores, of which the larger is the better.
Scoring = Callable[[Sequence[tuple[str, str]]], Float[np.ndarray, "N"]]


@dataclass(frozen=True, eq=False)
class Served:
    """A finished run, ready to serve.

    Attributes:
        batch_size: largest number of questions that are answered together.
        answer: None for a system that writes no answers.
        check: gives the number of tokens of a question; raises a RagJaxError if the model has no
            room for it.
        embed: None without an encoder.
        score: None without a reranker.
    """

    batch_size: int = 1
    answer: Answering | None = None
    check: Callable[[str], int] = len
    embed: Embedding | None = None
    score: Scoring | None = None


def make_embedding(session: Session, *, query: Pretrained, document: Pretrained) -> Embedding:
    """Embeds texts by a run's settings, as questions or as passages; longer texts are cut."""
    encoders, limit = {"query": query, "document": document}, session.encoding.max_length
    widths = list_widths(limit)

    def embed(texts: Sequence[str], role: Role) -> Embedded:
        encoder = encoders[role]
        vectors = session.encode(encoder, texts, role, widths=widths)
        encode = read_texts(encoder, role).encode
        return Embedded(vectors, [len(encode((text,), limit)) for text in texts])

    return embed


def make_scoring(reranking: Reranking | None) -> Scoring | None:
    """Scores pairs by a run's reranker; None without one."""
    if reranking is None:
        return None
    limit = reranking.max_length
    return partial(score_pairs, reranking.reranker, max_length=limit, widths=list_widths(limit))
