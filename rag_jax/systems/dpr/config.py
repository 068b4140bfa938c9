"""Settings of dense passage retrieval."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.config import (
    ContrastiveConfig,
    Count,
    CountOrZero,
    DataConfig,
    EncoderConfig,
    IndexConfig,
    MeshConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class DPREncoderConfig(EncoderConfig):
    """The encoder that both sides start from.

    Attributes:
        shared: whether both sides stay one model during training.
        pooling: what an embedding is: "mean" is the mean of the hidden states, normalised to length
            one; "cls" is the [CLS] state, not normalised. DPR's own encoders always use "cls".
    """

    shared: bool = True
    pooling: Literal["mean", "cls"] = "mean"


@dataclass(frozen=True)
class NegativesConfig:
    """Hard negatives: those that the data names, or else wrong passages that BM25 ranks high.

    Attributes:
        depth: number of passages that BM25 ranks for a question.
        kept: number of wrong passages kept of those. Every epoch draws `train.negatives` of them
            for each question.
    """

    depth: Count = 100
    kept: Count = 10


@dataclass(frozen=True)
class DPRConfig:
    """Dense passage retrieval.

    Attributes:
        depth: number of passages that are ranked for each question evaluated.
    """

    system: Literal["dpr"] = "dpr"
    seed: CountOrZero = 0
    evaluate_on: Literal["test", "dev"] = "test"
    depth: Count = 100
    mesh: MeshConfig = MeshConfig()
    encoder: DPREncoderConfig = DPREncoderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(train=1000, talk_pages=2)
    index: IndexConfig = IndexConfig(backend="exact")
    negatives: NegativesConfig = NegativesConfig()
    train: ContrastiveConfig = ContrastiveConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError if fewer negatives are kept than a question takes."""
        if self.train.negatives > self.negatives.kept:
            raise RagJaxError(
                f"{path}.train.negatives={self.train.negatives} is above {path}.negatives.kept="
                f"{self.negatives.kept}: keep as many as a question takes"
            )
