"""Settings of Self-Routing RAG."""

import re
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
    NonNegative,
    Positive,
    ReaderConfig,
    Seed,
    TrackerName,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import RetrieveConfig

LabelRule = Literal["top_half_majority", "mean", "best_single", "all_rank"]
Metric = Literal["cosine", "dot"]
Decision = Literal["threshold", "argmax_product"]


@dataclass(frozen=True)
class SourceConfig:
    """A knowledge source: the model itself, which verbalises, or a searched index of passages.

    Attributes:
        token: the special token that chooses the source.
        prefix: a search has the passages whose ids begin with this prefix.
    """

    name: str
    token: str
    kind: Literal["verbalise", "search"]
    prefix: str = ""

    def check(self, path: str) -> None:
        """Raises a RagJaxError if a field is malformed or does not fit the kind."""
        if not re.fullmatch(r"[\w-]+", self.name):
            raise RagJaxError(f"{path}.name={self.name!r}: must be of letters, digits, - and _")
        if self.prefix and self.kind == "verbalise":
            raise RagJaxError(f"{path}.prefix={self.prefix!r}: a model that verbalises has no ids")
        if not re.fullmatch(r"<[^<>\s]+>", self.token):
            raise RagJaxError(f"{path}.token={self.token!r}: must look like '<{self.name}>'")


@dataclass(frozen=True)
class GrownReaderConfig(ReaderConfig):
    """The language model, which gets a token for each source.

    Attributes:
        vocab_multiple: the vocabulary, new tokens included, is padded to a multiple of this number,
            so that a mesh divides the embedding table. 1 adds no padding.
    """

    vocab_multiple: Count = 1


@dataclass(frozen=True)
class VerbaliseConfig:
    """Documents by the untrained model (GenRead's two rounds).

    Attributes:
        demonstrations: number of a cluster's first-round documents shown before the second round.
        pool: number of first-round documents, which are clustered.
        only_answered: whether only documents that hold the answer are demonstrations, as in
            GenRead's code, if there are enough.
    """

    demonstrations: Count = 5
    pool: Count = 64
    max_tokens: Count = 24
    batch_size: Count = 80
    temperature: NonNegative = 0.0
    only_answered: bool = True


@dataclass(frozen=True)
class LabelConfig:
    """The labels of the training questions.

    Attributes:
        rule: how the contexts' scores become a label; see `label.choose_source`.
        batch_size: number of contexts scored together. A CPU is fastest at about 1,000 tokens.
        program_tokens: number of tokens that could be scored while one program compiles, for the
            choice of widths. None for 2,500 on CPU, measured on two cores, and 10 million
            elsewhere.
    """

    rule: LabelRule = "top_half_majority"
    batch_size: Count = 16
    program_tokens: CountOrZero | None = None


@dataclass(frozen=True)
class Stage2Config(TrainConfig):
    """Training stage 2.

    Attributes:
        beta: scale of the preference loss over verbalisations.
    """

    learning_rate: Positive = 5e-5
    beta: Positive = 0.3


@dataclass(frozen=True)
class NewTokensConfig(TuningConfig):
    """Tuning of the language model; the special tokens' embeddings are trained in both modes.

    Attributes:
        new_token_rate: factor on the learning rate for these embeddings. They start with logits
            some 14 nats below the others, too far for the usual rate in a dozen steps. Presets with
            thousands of steps have 1, as the paper says nothing of another rate.
    """

    new_token_rate: Positive = 5.0


@dataclass(frozen=True)
class DatastoreConfig:
    """The policy datastore.

    Attributes:
        layer: number of the block whose output is the key; 0 is the embedding.
        k: number of nearest entries that vote.
    """

    layer: CountOrZero = 15
    metric: Metric = "cosine"
    k: Count = 30


@dataclass(frozen=True)
class RouteConfig:
    """The choice of a source, by the sources' probabilities times their shares of the vote.

    The settings hold for SR-RAG, for its ablations and for selective retrieval alike.

    Attributes:
        decision: "threshold" searches if the searched sources' product is above `tau`;
            "argmax_product" if it is above that of the model itself. The searched source with the
            largest product is then taken.
        tau: the threshold, in the paper 0.1 for Llama-2 and 0.2 for other models; None chooses it
            for each router on the development questions.
        rate: how `tau=None` is chosen: the least threshold that searches at most this share of the
            development questions; None for the most accurate one, of several the one that searches
            least. Our choice, as the paper keeps one `tau`.
    """

    decision: Decision = "threshold"
    tau: Fraction | None = None
    rate: Fraction | None = 0.8

    @property
    def is_tuned(self) -> bool:
        """Whether thresholds are chosen on development questions."""
        return self.decision == "threshold" and self.tau is None


@dataclass(frozen=True)
class SelectiveConfig:
    """Selective retrieval, with which the method is compared, at a threshold of its own.

    Attributes:
        tau: retrieval needs a probability of the source's token above this threshold; 0.2 in the
            paper. The comparison also has selective retrieval by `RouteConfig`.
    """

    tau: Fraction = 0.2


@dataclass(frozen=True)
class GroundedAnswerConfig:
    """Answers at test time.

    Attributes:
        passages: number of retrieved passages that are read.
    """

    max_tokens: Count = 12
    passages: Count = 1
    batch_size: Count = 80


@dataclass(frozen=True)
class SRRAGConfig:
    """Self-Routing RAG.

    Attributes:
        contexts: number n of contexts that each source gives for a training question.
        extra_mean: mean of the Poisson draw of further passages on searched rows: 2 in the paper,
            less here, where one passage is read at test time.
        train_questions: maximum number of training questions; 0 for all.
        questions: maximum number of questions that are evaluated, and of those that thresholds are
            chosen on; 0 for all.
        ablations: whether to compare with the untrained model on each source, with selective
            retrieval, and with the method without verbalising in its labels and without preferences
            in stage 2. Five more trainings.
        profile_steps: number of steps of each training stage that are traced.
        track: where the curves of the run go besides the run's own files.
    """

    system: Literal["srrag"] = "srrag"
    seed: Seed = 0
    contexts: Count = 3
    extra_mean: NonNegative = 1.0
    loss_reduction: Literal["sum", "mean"] = "sum"
    train_questions: CountOrZero = 0
    questions: CountOrZero = 0
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    profile_steps: CountOrZero = 0
    sources: tuple[SourceConfig, ...] = (
        SourceConfig(name="Self", token="<Self>", kind="verbalise"),
        SourceConfig(name="Wiki", token="<Wiki>", kind="search"),
    )
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    model: GrownReaderConfig = GrownReaderConfig()
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig()
    index: IndexConfig = IndexConfig()
    retrieve: RetrieveConfig = RetrieveConfig()
    verbalise: VerbaliseConfig = VerbaliseConfig()
    label: LabelConfig = LabelConfig()
    tuning: NewTokensConfig = NewTokensConfig()
    stage1: TrainConfig = TrainConfig()
    stage2: Stage2Config = Stage2Config()
    datastore: DatastoreConfig = DatastoreConfig()
    route: RouteConfig = RouteConfig()
    selective: SelectiveConfig = SelectiveConfig()
    answer: GroundedAnswerConfig = GroundedAnswerConfig()

    def check(self, path: str) -> None:
        """Raises a RagJaxError if settings do not fit each other."""
        if self.contexts % 2 == 0:
            raise RagJaxError(
                f"{path}.contexts={self.contexts}: must be odd, or the better half of two "
                "sources' contexts has no majority"
            )
        if self.verbalise.pool < self.contexts:
            raise RagJaxError(
                f"{path}.verbalise.pool={self.verbalise.pool} is below {path}.contexts="
                f"{self.contexts}: each context needs a cluster of its own"
            )
        for field in ("name", "token"):
            values = [getattr(source, field) for source in self.sources]
            for index, value in enumerate(values):
                if value in values[:index]:
                    raise RagJaxError(
                        f"{path}.sources[{index}].{field}={value!r}: another source has it already"
                    )
        kinds = [source.kind for source in self.sources]
        if kinds.count("verbalise") != 1 or "search" not in kinds:
            raise RagJaxError(
                f"{path}.sources: routing needs at least two sources, exactly one of kind "
                f"'verbalise' and the others of kind 'search'; there are {kinds or 'none'}"
            )
