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
    """The encoder that both sides start from, and whether they stay one.

    `pooling` is what an embedding is made of: "mean" of the states, then of length one, or "cls",
    the [CLS] state as it is. DPR's own encoders are of the second kind whatever it says.
    """

    shared: bool = True
    pooling: Literal["mean", "cls"] = "mean"


@dataclass(frozen=True)
class NegativesConfig:
    """Hard negatives: of the first `depth` passages by BM25, the first `kept` that are wrong.

    Every epoch draws anew from those kept as many as a question takes (`train.negatives`).
    """

    depth: Count = 100
    kept: Count = 10


@dataclass(frozen=True)
class DPRConfig:
    """Dense passage retrieval: `depth` passages are ranked for each question evaluated."""

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
        if self.train.negatives > self.negatives.kept:
            raise RagJaxError(
                f"{path}.train.negatives={self.train.negatives} is above {path}.negatives.kept="
                f"{self.negatives.kept}: keep as many as a question takes"
            )
