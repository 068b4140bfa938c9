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
    Seed,
    TrackerName,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import BM25Config, RetrieveConfig


@dataclass(frozen=True)
class DPREncoderConfig(EncoderConfig):
    """The encoder that both sides start from.

    Attributes:
        shared: whether both sides stay one model during training.
        pooling: what an embedding is: "mean" is the mean of the hidden states, normalised to length
            one; "cls" is BERT's [CLS] state, not normalised, as DPR's own encoders always have it.
            "files" for what the encoder's files say.
    """

    shared: bool = True
    pooling: Literal["files", "mean", "cls"] = "files"


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
class ValidationConfig:
    """Which epoch's encoders are kept: the last one's, or the best by DPR's average rank.

    Attributes:
        after: number of epochs after which each further one is validated on dev questions, and the
            best of those is kept; None to keep the last epoch without validating. DPR validates by
            average rank after 30 of its 40 epochs.
        questions: maximum number of dev questions, the first ones. 10,000 in DPR.
        negatives: number of wrong passages of each question in the pool. DPR has 30 hard and 30
            other ones; these are hard.
    """

    after: CountOrZero | None = None
    questions: Count = 10_000
    negatives: Count = 30


@dataclass(frozen=True)
class DPRConfig:
    """Dense passage retrieval.

    Attributes:
        positives: whether a question has a training example for each of its relevant passages, or
            one, with the first that the data names, as in DPR.
        depth: number of passages that are ranked for each question evaluated.
        track: where the curves of the run go besides the run's own files.
    """

    system: Literal["dpr"] = "dpr"
    seed: Seed = 0
    evaluate_on: Literal["test", "dev"] = "test"
    depth: Count = 100
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    encoder: DPREncoderConfig = DPREncoderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(train=1000, talk_pages=2)
    index: IndexConfig = IndexConfig(backend="exact")
    bm25: BM25Config = BM25Config()
    retrieve: RetrieveConfig = RetrieveConfig()
    positives: Literal["all", "first"] = "all"
    negatives: NegativesConfig = NegativesConfig()
    validation: ValidationConfig = ValidationConfig()
    train: ContrastiveConfig = ContrastiveConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError if too few negatives are kept, or no epoch would be validated.

        Also if more passages would be reranked than are found.
        """
        rerank = self.retrieve.rerank
        if rerank.name is not None and rerank.depth > self.depth:
            raise RagJaxError(
                f"{path}.retrieve.rerank.depth={rerank.depth} is above {path}.depth={self.depth}: "
                "no more passages are found than that"
            )
        after = self.validation.after
        if after is not None and after >= self.train.epochs:
            raise RagJaxError(
                f"{path}.validation.after={after}: no epoch is left to validate of {path}.train."
                f"epochs={self.train.epochs}"
            )
        if self.train.negatives > self.negatives.kept:
            raise RagJaxError(
                f"{path}.train.negatives={self.train.negatives} is above {path}.negatives.kept="
                f"{self.negatives.kept}: keep as many as a question takes"
            )
