"""Settings of the search for words, of fusion and of reranking, as in `rag_jax.config`."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.settings import Count, Fraction, NonNegative, Positive

# Qwen3-Reranker's form: a chat in which the model answers yes or no.
_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


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
class YesNo:
    """What a language model is asked about a question and a passage, to answer yes or no.

    Attributes:
        before: what stands before the question; control tokens in it are such.
        between: what stands between the question and the passage.
        after: what stands after the passage; control tokens in it are such.
        yes, no: the answers, a token each, whose log odds are the score.
    """

    before: str = (
        f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"<Instruct>: {_INSTRUCTION}\n<Query>: "
    )
    between: str = "\n<Document>: "
    after: str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    yes: str = "yes"
    no: str = "no"


@dataclass(frozen=True)
class RerankConfig:
    """The reranking of what a search finds; see `rag_jax.retrieval.rerank`.

    Attributes:
        name: name or folder of a reranker; None for no reranking.
        depth: number of passages that are read for a question, the first that are found. If more
            are wanted, the others follow in the order in which they were found.
        max_length: maximum number of tokens that are read of a question and a passage; None for
            512, or as many as the reranker reads if that is fewer.
        dtype: type of weights and activations.
        asks: whether the reranker is a language model that is asked `question`.
    """

    name: str | None = None
    depth: Count = 20
    max_length: Count | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    asks: bool = False
    question: YesNo = YesNo()

    @property
    def asked(self) -> YesNo | None:
        """What a language model is asked; None for a reranker with a head of its own."""
        return self.question if self.asks else None

    def check(self, path: str) -> None:
        """Raises a RagJaxError if there is a question that nobody is asked."""
        usual = vars(YesNo())
        changed = [name for name, value in vars(self.question).items() if value != usual[name]]
        if changed and not self.asks:
            raise RagJaxError(
                f"{path}.question.{changed[0]}: only a language model is asked; set "
                f"{path}.asks=True"
            )


@dataclass(frozen=True)
class RetrieveConfig:
    """What is done with the passages that a system's own search finds."""

    rerank: RerankConfig = RerankConfig()
