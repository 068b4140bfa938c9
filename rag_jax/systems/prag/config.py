"""Settings of Parametric RAG."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.config import (
    Count,
    CountOrZero,
    DataConfig,
    EncoderConfig,
    Fraction,
    MeshConfig,
    NonNegative,
    Positive,
    ReaderConfig,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class ChatReaderConfig(ReaderConfig):
    """A reader that is asked in its chat template if `chat`, else in plain text."""

    chat: bool = False


@dataclass(frozen=True)
class RetrieveConfig:
    """Which documents a question gets: the first `passages` that BM25 or a dense encoder finds."""

    by: Literal["bm25", "dense"] = "dense"
    passages: Count = 3
    encoder: EncoderConfig = EncoderConfig()


@dataclass(frozen=True)
class AugmentConfig:
    """What is made of a document: `rewrites` of it, and `questions` with their answers.

    By the model itself, with at most `retries` further tries where a text is no good; or by rules,
    where the model is too small to be trusted.
    """

    by: Literal["model", "rules"] = "rules"
    rewrites: CountOrZero = 1
    questions: CountOrZero = 3
    retries: CountOrZero = 3
    max_tokens: Count = 512
    temperature: NonNegative = 0.7
    top_k: CountOrZero = 50
    batch_size: Count = 16

    def check(self, path: str) -> None:
        if not self.rewrites and not self.questions:
            raise RagJaxError(
                f"{path}.rewrites=0 and {path}.questions=0: nothing is left of the augmentation"
            )
        if self.by == "rules" and self.rewrites > 1:
            raise RagJaxError(
                f"{path}.rewrites={self.rewrites}: rules know one rewrite; set 1, or "
                f"{path}.by='model'"
            )


@dataclass(frozen=True)
class EncodeConfig:
    """Training of the documents' adapters: AdamW at a constant rate, one example a step.

    `together` documents are trained at once. They start from fresh adapters, all the same, or from
    one that was warmed up on training questions.
    """

    epochs: Count = 1
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 0.01
    together: Count = 16
    start: Literal["random", "warm"] = "random"


@dataclass(frozen=True)
class WarmUpConfig(TrainConfig):
    """Warm-up of the adapter that documents start from, on at most `questions` of the training
    questions with their answers (paper, section 3.2.3)."""

    questions: Count = 600
    batch_size: Count = 1
    learning_rate: Positive = 3e-4
    warmup_fraction: Fraction = 0.0
    weight_decay: NonNegative = 0.01


@dataclass(frozen=True)
class AnswerConfig:
    """Answers: their length in tokens, and how many questions are answered together."""

    max_tokens: Count = 20
    batch_size: Count = 16


@dataclass(frozen=True)
class PRAGConfig:
    """Parametric RAG (Su et al. 2025). At most `questions` are evaluated, 0 for all; documents that
    none of them finds are not encoded. `ablations` encodes them again without rewrites, without
    questions, and from the other start."""

    system: Literal["prag"] = "prag"
    seed: CountOrZero = 0
    questions: CountOrZero = 0
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    mesh: MeshConfig = MeshConfig()
    model: ChatReaderConfig = ChatReaderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(cities=40, train=100, dev=60, test=100)
    retrieve: RetrieveConfig = RetrieveConfig()
    augment: AugmentConfig = AugmentConfig()
    tuning: TuningConfig = TuningConfig(rank=2, targets=r"ffn/(gate|up|down)")
    warm_up: WarmUpConfig = WarmUpConfig()
    encode: EncodeConfig = EncodeConfig()
    answer: AnswerConfig = AnswerConfig()

    def check(self, path: str) -> None:
        if self.tuning.mode != "lora":
            raise RagJaxError(
                f"{path}.tuning.mode={self.tuning.mode!r}: a document is an adapter; set 'lora'"
            )
