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
    Seed,
    TrackerName,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import BM25Config, RetrieveConfig


@dataclass(frozen=True)
class RetrieverConfig(EncoderConfig):
    """The question's encoder, and the passages' encoder.

    Attributes:
        passage_name: the passages' encoder; None if it is the question's. DPR has two.
        scale: factor on the dot products before the softmax over passages. 1 for DPR, whose
            embeddings have any length; cosines, as MiniLM's, are too close to each other without.
    """

    passage_name: str | None = None
    scale: Positive = 20.0


@dataclass(frozen=True)
class GeneratorConfig(ModelConfig):
    """The generator, BART or a decoder.

    Attributes:
        max_length: maximum number of tokens of a passage and a question together.
        chat: whether a decoder is asked in its chat template, and not in plain text.
    """

    max_length: Count = 160
    chat: bool = False


@dataclass(frozen=True)
class JointTrainConfig(TrainConfig):
    """Training by the marginal likelihood of the answer.

    Attributes:
        questions: maximum number of training questions; 0 for all.
        answers: whether a question is trained on its first answer, or has a row for each of its
            answers, as the paper's Natural Questions and WebQuestions have.
        generator: whether the generator is trained. If not, the question's encoder learns alone,
            from a generator as it is, and "frozen" is the generator and the retriever as they are.
        retriever_rate: factor on the learning rate for the question's encoder.
        refresh_every: number of steps after which the question's encoder embeds the passages anew,
            for which it must be the passages' encoder too. 0 for never, as in the paper.
    """

    questions: CountOrZero = 0
    answers: Literal["first", "all"] = "first"
    generator: bool = True
    batch_size: Count = 8
    learning_rate: Positive = 1e-3
    microbatch_tokens: Count = 320
    retriever_rate: Positive = 0.05
    smoothing: Fraction = 0.0
    refresh_every: CountOrZero = 0


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding.

    Attributes:
        questions: maximum number of questions that are evaluated; 0 for all.
        passages: number of passages K of a question at test time; 0 for that of the training. The
            paper reads 15 with RAG-Token and 50 with RAG-Sequence.
        curve: numbers of passages at which the answers are also evaluated, for the curve of the
            paper's figure 3.
        beams: number of beams of a question in RAG-Token, of a passage in RAG-Sequence. 1 is greedy
            decoding, as in the paper's question answering.
        early_stopping: whether to stop with the last finished beam, although a live beam might win.
        memory_questions: maximum number of questions about facts that the world's other revision
            changed.
    """

    questions: CountOrZero = 0
    passages: CountOrZero = 0
    curve: tuple[Count, ...] = ()
    max_tokens: Count = 12
    beams: Count = 1
    length_penalty: NonNegative = 1.0
    early_stopping: bool = True
    batch_size: Count = 8
    memory_questions: Count = 40


@dataclass(frozen=True)
class RAGConfig:
    """Retrieval-augmented generation (Lewis et al. 2020).

    Attributes:
        passages: number of passages K of a question in training; 5 or 10 in the paper.
        marginal: the trained model, RAG-Sequence or RAG-Token.
        task: what an answer is: a few words ("qa"), one of the training answers, as FEVER's labels
            ("classification"), or a text ("generation").
        ablations: whether to train two more generators: with BM25's passages and scores in place of
            the retriever's, and without passages.
        ranked_questions: maximum number of questions for which the retrievers alone are compared,
            beside those that are answered, since that costs little; 0 for none.
        profile_steps: number of steps of each training that are traced.
        track: where the curves of the run go besides the run's own files.
    """

    system: Literal["rag"] = "rag"
    seed: Seed = 0
    passages: Count = 3
    marginal: Literal["sequence", "token"] = "sequence"
    task: Literal["qa", "classification", "generation"] = "qa"
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    ranked_questions: CountOrZero = 0
    profile_steps: CountOrZero = 0
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    generator: GeneratorConfig = GeneratorConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(train=96, dev=60, test=100, talk_pages=2)
    index: IndexConfig = IndexConfig()
    bm25: BM25Config = BM25Config()
    retrieve: RetrieveConfig = RetrieveConfig()
    tuning: TuningConfig = TuningConfig()
    train: JointTrainConfig = JointTrainConfig()
    decode: DecodeConfig = DecodeConfig()

    @property
    def passages_read(self) -> int:
        """The number of passages K of a question at test time."""
        return self.decode.passages or self.passages

    def check(self, path: str) -> None:
        """Raises a RagJaxError if the index is to be refreshed by an encoder of questions alone.

        Also if generators are to be trained as ablations, but the run's is not trained, if answers
        are to be looked for in passages that have none, and if nothing would be trained.
        """
        if self.train.refresh_every and self.retriever.passage_name is not None:
            raise RagJaxError(
                f"{path}.train.refresh_every={self.train.refresh_every}: only an encoder of both "
                f"questions and passages can encode these anew; leave {path}.retriever."
                "passage_name out"
            )
        if self.ablations and not self.train.generator:
            raise RagJaxError(
                f"{path}.ablations=True with {path}.train.generator=False: the ablations are "
                "trained generators; leave one of the two out"
            )
        if self.passages == 1 and not self.train.generator:
            raise RagJaxError(
                f"{path}.passages=1 with {path}.train.generator=False: nothing would be trained, "
                "since one passage is as likely as can be; set passages higher"
            )
        if self.ranked_questions and self.task != "qa":
            raise RagJaxError(
                f"{path}.ranked_questions={self.ranked_questions} with {path}.task={self.task!r}: "
                "passages hold no answers of that task; leave it out"
            )
