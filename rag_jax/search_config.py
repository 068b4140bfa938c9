"""Settings of the search for words, of fusion and of reranking, as in `rag_jax.config`."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.runtime.settings import Count, Fraction, NonNegative, Positive


@dataclass(frozen=True)
class BM25Config:
    """The search for words.

    Attributes:
        k1: how slowly a term's weight grows with its frequency in a passage; with 0 it does not.
        b: how much a long passage's frequencies count less, from not at all to in full proportion.
        language: of passages and questions. Words count as their stems by Snowball's stemmer of the
            language, and stop words do not count. With "none" all words count, as they are. "auto"
            is English for an English corpus and none for others; see `rag_jax.retrieval.BM25`.
    """

    k1: NonNegative = 1.2
    b: Fraction = 0.75
    language: Literal[
        "auto",
        "none",
        "danish",
        "dutch",
        "english",
        "french",
        "german",
        "italian",
        "norwegian",
        "portuguese",
        "russian",
        "spanish",
        "swedish",
        "turkish",
    ] = "auto"


@dataclass(frozen=True)
class FusionConfig:
    """The fusion of several searchers' rankings; see `rag_jax.retrieval.Fused`.

    Attributes:
        by: "ranks" for reciprocal-rank fusion, "scores" for the sum of each searcher's scores, from
            0 for the last to 1 for the first passage of a question.
        depth: number of passages of each searcher that are fused.
        constant: what is added to a rank; the larger it is, the less the first ranks stand out.
        weights: of the searchers, in their order; none for equal weights.
    """

    by: Literal["ranks", "scores"] = "ranks"
    depth: Count = 100
    constant: NonNegative = 60.0
    weights: tuple[Positive, ...] = ()


@dataclass(frozen=True)
class RerankConfig:
    """The reranking of what a search finds; see `rag_jax.retrieval.Reranked`.

    Attributes:
        name: name or folder of a reranker; None for no reranking.
        depth: number of passages that are read for a question, at least as many as are wanted.
        max_length: number of tokens that are read of a question and a passage.
    """

    name: str | None = None
    depth: Count = 20
    max_length: Count = 512
