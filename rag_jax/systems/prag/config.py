"""Settings of Parametric RAG."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rag_jax.config import (
    ConstantTrainConfig,
    Count,
    CountOrZero,
    DataConfig,
    EncoderConfig,
    MeshConfig,
    NonNegative,
    Positive,
    Range,
    ReaderConfig,
    Seed,
    TrackerName,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import BM25Config, FusionConfig, RetrieveConfig
from rag_jax.systems.prag.demonstrations import DEMONSTRATIONS

By = Literal["bm25", "dense", "fused"]  # how documents are found


@dataclass(frozen=True)
class ChatReaderConfig(ReaderConfig):
    """The language model that answers.

    Attributes:
        chat: whether the model is asked in its chat template, and not in plain text.
    """

    chat: bool = False


@dataclass(frozen=True)
class PromptConfig:
    """How the model is asked.

    Attributes:
        reasoning: whether answers are reasoned step by step and read after "the answer is", and the
            questions about documents are answered by whole sentences. The paper reasons on
            2WikiMultihopQA and HotpotQA, with 128 tokens an answer, and answers directly on PopQA
            and ComplexWebQuestions, with 20.
        demonstrations: number of worked examples before a question, with reasoning. The released
            code has 8 for 2WikiMultihopQA and 11 for HotpotQA.
    """

    reasoning: bool = False
    demonstrations: Annotated[int, Range(0, len(DEMONSTRATIONS))] = 0

    def check(self, path: str) -> None:
        """Raises a RagJaxError if there are demonstrations of a reasoning that is not asked for."""
        if self.demonstrations and not self.reasoning:
            raise RagJaxError(
                f"{path}.demonstrations={self.demonstrations}: they show reasoned answers; set "
                f"{path}.reasoning=True, or 0"
            )


@dataclass(frozen=True)
class DocumentsConfig(RetrieveConfig):
    """Retrieval of the documents of a question, by BM25, a dense encoder or both.

    Attributes:
        by: "fused" for the fusion of BM25's ranking with the encoder's, in this order.
    """

    by: By = "dense"
    passages: Count = 3
    encoder: EncoderConfig = EncoderConfig()
    fusion: FusionConfig = FusionConfig()

    @property
    def by_words(self) -> bool:
        """Whether BM25 ranks documents."""
        return self.by != "dense"

    @property
    def by_encoder(self) -> bool:
        """Whether an encoder ranks documents."""
        return self.by != "bm25"

    def check(self, path: str) -> None:
        """Raises a RagJaxError unless there is a weight for each of two searchers, or none."""
        if len(self.fusion.weights) not in (0, 2):
            raise RagJaxError(
                f"{path}.fusion.weights={self.fusion.weights}: must be two, BM25's and the "
                "encoder's, or none"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of a document before it is encoded.

    Attributes:
        by: "model" asks a language model; "rules" is for models too small to follow instructions.
        model: the model that is asked, by name or folder; None for the model that answers (paper,
            table 3: which one writes hardly matters). It is loaded in the dtype of the latter, and
            not held together with it.
        rewrites: number of rewrites of a document.
        questions: number of questions with their answers about a document.
        retries: maximum number of further attempts of the model after an unusable text.
        top_k: number of likeliest tokens that are sampled from; 0 for all.
    """

    by: Literal["model", "rules"] = "rules"
    model: str | None = None
    rewrites: CountOrZero = 1
    questions: CountOrZero = 3
    retries: CountOrZero = 3
    max_tokens: Count = 512
    temperature: NonNegative = 0.7
    top_k: CountOrZero = 50
    batch_size: Count = 16

    def check(self, path: str) -> None:
        """Raises a RagJaxError if nothing is asked of the augmentation, or too much of rules."""
        if not self.rewrites and not self.questions:
            raise RagJaxError(
                f"{path}.rewrites=0 and {path}.questions=0: nothing is left of the augmentation"
            )
        if self.by == "rules" and self.model is not None:
            raise RagJaxError(
                f"{path}.model={self.model!r}: rules ask no model; set {path}.by='model', or None"
            )
        if self.by == "rules" and self.rewrites > 1:
            raise RagJaxError(
                f"{path}.rewrites={self.rewrites}: rules know one rewrite; set 1, or "
                f"{path}.by='model'"
            )


@dataclass(frozen=True)
class EncodeConfig:
    """Training of the documents' adapters: AdamW at a constant rate, one example a step.

    Attributes:
        together: maximum number of documents that are trained at once.
        start: the adapter that every document starts from: a "random" one, or one that was "warm"ed
            up on training questions.
        program_tokens: as for other trainings.
    """

    epochs: Count = 1
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 0.01
    together: Count = 16
    start: Literal["random", "warm"] = "random"
    program_tokens: CountOrZero | None = None


@dataclass(frozen=True)
class WarmUpConfig(ConstantTrainConfig):
    """Warm-up of the adapter that documents start from, on training questions with their answers.

    See the paper, section 3.2.3; the constant rate, without clipping, is the released code's.

    Attributes:
        questions: maximum number of training questions; 0 for all.
    """

    questions: Count = 600
    batch_size: Count = 1
    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 0.01


@dataclass(frozen=True)
class TranslatorConfig(ConstantTrainConfig):
    """Training of the parameter translator, which makes adapters without training (DyPRAG).

    AdamW at a constant rate, without clipping; defaults are the paper's and the released code's.

    Attributes:
        documents: number of documents that the translator is trained on, none of which a question
            that is evaluated finds; each gets an adapter of its own first. 0 for no translator.
        hidden: width of the translator's networks.
        init: standard deviation of the first weights of `W_down`, the released code's; see
            `translator.init_translator` for what is lost with it.
        language, divergence, distance: weights of the loss's terms: the language model's loss with
            the made adapter, the divergence from the trained adapter's predictions, and the mean
            squared differences from its weights.
    """

    documents: CountOrZero = 0
    hidden: Count = 32
    init: Positive = 1e-7
    language: NonNegative = 1.0
    divergence: NonNegative = 0.01
    distance: NonNegative = 100.0
    batch_size: Count = 1
    learning_rate: Positive = 1e-5
    weight_decay: NonNegative = 0.01
    checkpoint_every: Count = 50


@dataclass(frozen=True)
class AnswerConfig:
    """Answers at test time.

    Attributes:
        merge: the update of several documents is the "sum" of their adapters' (paper, eq. 6) or
            their "mean".
    """

    merge: Literal["sum", "mean"] = "sum"
    max_tokens: Count = 20
    batch_size: Count = 16


@dataclass(frozen=True)
class PRAGConfig:
    """Parametric RAG (Su et al. 2025).

    Attributes:
        questions: maximum number of questions that are evaluated; 0 for all. Only documents that
            one of these questions finds are encoded.
        ablations: whether documents are also encoded without rewrites, without questions, and from
            the other start.
        readers: further rows, in which the model as loaded reads what a search by BM25, by the
            encoder, by both or by these and the reranker finds, or the whole corpus, if it fits the
            context. Their searches find passages that need no adapter.
        ask: how `launch/ask.py` uses the documents: "parametric" merges their adapters,
            "in_context" reads their passages, and "both" does both.
        track: where the curves of the run go besides the run's own files.
    """

    system: Literal["prag"] = "prag"
    seed: Seed = 0
    questions: CountOrZero = 0
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    readers: tuple[Literal["bm25", "dense", "fused", "reranked", "corpus"], ...] = ()
    ask: Literal["parametric", "in_context", "both"] = "both"
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    model: ChatReaderConfig = ChatReaderConfig()
    prompt: PromptConfig = PromptConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(cities=40, train=100, dev=60, test=100)
    retrieve: DocumentsConfig = DocumentsConfig()
    bm25: BM25Config = BM25Config()
    augment: AugmentConfig = AugmentConfig()
    tuning: TuningConfig = TuningConfig(rank=2, targets=r"ffn/(gate|up|down)")
    warm_up: WarmUpConfig = WarmUpConfig()
    encode: EncodeConfig = EncodeConfig()
    translator: TranslatorConfig = TranslatorConfig()
    answer: AnswerConfig = AnswerConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError unless the tuning mode is "lora" and the readers can be had."""
        if self.tuning.mode != "lora":
            raise RagJaxError(
                f"{path}.tuning.mode={self.tuning.mode!r}: a document is an adapter; set 'lora'"
            )
        if len({*self.readers}) < len(self.readers):
            raise RagJaxError(f"{path}.readers={self.readers}: give each of them once")
        if "reranked" in self.readers and self.retrieve.rerank.name is None:
            raise RagJaxError(
                f"{path}.readers: 'reranked' needs a reranker; set {path}.retrieve.rerank.name"
            )
