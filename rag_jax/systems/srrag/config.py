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
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.runtime.errors import RagJaxError

LabelRule = Literal["top_half_majority", "mean", "best_single", "all_rank"]
Metric = Literal["cosine", "dot"]
Decision = Literal["threshold", "argmax_product"]


@dataclass(frozen=True)
class SourceConfig:
    """A knowledge source: what it is called, its special token, and how it gives passages.

    The model verbalises; a search has an index of its own, of the passages whose id begins with
    `prefix`.
    """

    name: str
    token: str
    kind: Literal["verbalise", "search"]
    prefix: str = ""

    def check(self, path: str) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise RagJaxError(f"{path}.name={self.name!r}: must be of letters, digits, - and _")
        if self.prefix and self.kind == "verbalise":
            raise RagJaxError(f"{path}.prefix={self.prefix!r}: a model that verbalises has no ids")
        if not re.fullmatch(r"<[^<>\s]+>", self.token):
            raise RagJaxError(f"{path}.token={self.token!r}: must look like '<{self.name}>'")


@dataclass(frozen=True)
class VerbaliseConfig:
    """How the model is made to write down what it knows (GenRead's two rounds).

    `pool` first-round documents are clustered, and each of the `contexts` clusters gives
    `demonstrations` examples for one second-round document of at most `max_tokens` tokens. With
    `only_answered`, as in GenRead's code, examples are documents that hold the answer, if there
    are enough.
    """

    demonstrations: Count = 5
    pool: Count = 64
    max_tokens: Count = 24
    batch_size: Count = 80
    temperature: NonNegative = 0.0
    only_answered: bool = True


@dataclass(frozen=True)
class LabelConfig:
    """How contexts become a label, by one of the rules that `label.choose_source` describes, and
    how many are scored at once; some 1,000 tokens is where a CPU is fastest."""

    rule: LabelRule = "top_half_majority"
    batch_size: Count = 16


@dataclass(frozen=True)
class Stage2Config(TrainConfig):
    """Stage 2: `beta` scales the preference loss over verbalisations."""

    learning_rate: Positive = 5e-5
    beta: Positive = 0.3


@dataclass(frozen=True)
class NewTokensConfig(TuningConfig):
    """The special tokens' embeddings are trained in both modes, `new_token_rate` times as fast:
    they start with logits some 14 nats below the others, too far for the other rate in a dozen
    steps."""

    new_token_rate: Positive = 5.0


@dataclass(frozen=True)
class DatastoreConfig:
    """The policy datastore: hidden states after block `layer` (0 is the embedding), and the `k`
    nearest by `metric` that vote."""

    layer: CountOrZero = 15
    metric: Metric = "cosine"
    k: Count = 30


@dataclass(frozen=True)
class RouteConfig:
    """By the sources' probabilities times their shares of the vote: "threshold" searches when a
    searched source's product is above `tau`, "argmax_product" takes the largest product."""

    decision: Decision = "threshold"
    tau: Fraction = 0.22


@dataclass(frozen=True)
class SelectiveConfig:
    """Selective retrieval, which is compared with: it searches when the source's token is more
    likely than `tau`."""

    tau: Fraction = 0.2


@dataclass(frozen=True)
class GroundedAnswerConfig:
    """Answers at test time: their length in tokens and how many found passages they may read."""

    max_tokens: Count = 12
    passages: Count = 1
    batch_size: Count = 80


@dataclass(frozen=True)
class SRRAGConfig:
    """Self-Routing RAG. `contexts` is n, the contexts each source gives a training question;
    `extra_mean` is the mean of the Poisson draw of further passages on searched rows: 2 in the
    paper, less here, where one passage is read at test time. At most `train_questions` are trained
    on and at most `questions` evaluated, 0 for all. So many `profile_steps` of each training stage
    are traced.

    `ablations` compares with the untrained model on each source, with selective retrieval, and with
    the method without verbalising in its labels and without preferences in stage 2, for which it
    trains four times more.
    """

    system: Literal["srrag"] = "srrag"
    seed: CountOrZero = 0
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
    mesh: MeshConfig = MeshConfig()
    model: ReaderConfig = ReaderConfig()
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig()
    index: IndexConfig = IndexConfig()
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
