"""Settings of retrieval-augmented generation."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.config import (
    Count,
    CountOrZero,
    DataConfig,
    EncoderConfig,
    Fraction,
    IndexConfig,
    MeshConfig,
    ModelConfig,
    NonNegative,
    Positive,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class RetrieverConfig(EncoderConfig):
    """The question's encoder, and the passages' where that is another one (DPR's are two).

    `scale` multiplies the dot products before the softmax over passages: 1 for DPR, whose
    embeddings have any length; cosines, as MiniLM's, are too close to each other without.
    """

    passage_name: str | None = None
    scale: Positive = 20.0


@dataclass(frozen=True)
class GeneratorConfig(ModelConfig):
    """The generator, BART or a decoder; `max_length` tokens are read of a passage and a question.

    A decoder is asked in plain text, or in its chat template if `chat`.
    """

    max_length: Count = 160
    chat: bool = False


@dataclass(frozen=True)
class JointTrainConfig(TrainConfig):
    """Training by the marginal likelihood of the answer.

    `retriever_rate` times as fast for the question's encoder as for the generator; `smoothing` of
    labels; every `refresh_every` steps the passages are encoded anew by the question's encoder,
    which must then be the passages' too (0: never, as in the paper). At most `questions` of the
    training questions are used, 0 for all.
    """

    questions: CountOrZero = 0
    batch_size: Count = 8
    learning_rate: Positive = 1e-3
    microbatch_tokens: Count = 320
    retriever_rate: Positive = 0.05
    smoothing: Fraction = 0.0
    refresh_every: CountOrZero = 0


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding: answers of at most `max_tokens`; `beams` a question, or a passage in RAG-Sequence,
    one (greedy) as in the paper's question answering; `early_stopping` ends with the last beam that
    is finished, though a live one might win.

    At most `questions` are evaluated, 0 for all, `batch_size` together; and at most
    `memory_questions` of those that the world's other revision answers otherwise.
    """

    questions: CountOrZero = 0
    max_tokens: Count = 12
    beams: Count = 1
    length_penalty: NonNegative = 1.0
    early_stopping: bool = True
    batch_size: Count = 8
    memory_questions: Count = 40


@dataclass(frozen=True)
class RAGConfig:
    """Retrieval-augmented generation (Lewis et al. 2020). `passages` is K; `marginal` is what is
    trained, RAG-Sequence or RAG-Token; so many `profile_steps` of each training are traced.

    The `task` says what an answer is: "qa", a few words; "classification", one of the training
    answers (FEVER's labels); "generation", a text.
    """

    system: Literal["rag"] = "rag"
    seed: CountOrZero = 0
    passages: Count = 3
    marginal: Literal["sequence", "token"] = "sequence"
    task: Literal["qa", "classification", "generation"] = "qa"
    evaluate_on: Literal["test", "dev"] = "test"
    profile_steps: CountOrZero = 0
    mesh: MeshConfig = MeshConfig()
    generator: GeneratorConfig = GeneratorConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(train=96, dev=60, test=100, talk_pages=2)
    index: IndexConfig = IndexConfig()
    tuning: TuningConfig = TuningConfig()
    train: JointTrainConfig = JointTrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def check(self, path: str) -> None:
        if self.train.refresh_every and self.retriever.passage_name is not None:
            raise RagJaxError(
                f"{path}.train.refresh_every={self.train.refresh_every}: only an encoder of both "
                f"questions and passages can encode these anew; leave {path}.retriever."
                "passage_name out"
            )
