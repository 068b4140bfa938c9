"""Settings of Self-Retrieval."""

from dataclasses import dataclass
from typing import Literal

from rag_jax.config import (
    ContrastiveConfig,
    Count,
    CountOrZero,
    DataConfig,
    EncoderConfig,
    MeshConfig,
    Positive,
    ReaderConfig,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)


@dataclass(frozen=True)
class ExamplesConfig:
    """The training texts.

    Attributes:
        target: what is generated of a passage: the whole "passage" (the paper), or the "prefix" of
            its first `prefix_words` words (the released code).
        assessment: how the model judges a passage: by the "phrase" "can answer the query" or
            "cannot answer the query" before the answer (the paper), or by the "answer" itself or
            "cannot extract answer" (the released code).
        sentences: number of a passage's sentences that index the passage; 0 for all.
        same: number of a question's negatives drawn from each relevant passage's document; 5 in the
            released code.
        other: number of a question's negatives from other documents, mined by BM25.
    """

    target: Literal["passage", "prefix"] = "passage"
    prefix_words: Count = 10
    assessment: Literal["phrase", "answer"] = "phrase"
    sentences: CountOrZero = 1
    same: CountOrZero = 1
    other: CountOrZero = 2


@dataclass(frozen=True)
class SearchConfig:
    """Retrieval by constrained beam search, and the passages' scores.

    Scores are softmaxes of `p(title) / tau` over the titles and of `(1 - p(reject)) / delta` over
    passages.

    Attributes:
        titles: number of beams of the title.
        passages: number of beams of the passage, after each title.
        method: "trie" follows every beam to the end of its passage; "reference" is the released
            code's search, in which beams part at the passage's first token and continue greedily.
        lengths: a text's probability is the product over its tokens, "sum" of log-probabilities
            (the paper), or their geometric mean, "mean" (the released code).
        over: the passages of one softmax: those of one "title" (the released code), or "all".
    """

    titles: Count = 3
    passages: Count = 3
    method: Literal["trie", "reference"] = "trie"
    tau: Positive = 0.4
    delta: Positive = 0.4
    lengths: Literal["sum", "mean"] = "sum"
    over: Literal["title", "all"] = "title"
    max_answer: Count = 12
    batch_size: Count = 4


@dataclass(frozen=True)
class DenseConfig:
    """The dense encoder that the method is compared with, before and after contrastive training.

    Attributes:
        hard: number of BM25's negatives kept for each question.
    """

    encoder: EncoderConfig = EncoderConfig()
    train: ContrastiveConfig = ContrastiveConfig(batch_size=16)
    hard: Count = 10


@dataclass(frozen=True)
class SelfRetrievalConfig:
    """Self-Retrieval (Tang et al. 2024).

    Attributes:
        ablations: whether to train two more models: without indexing, and without titles.
        profile_steps: number of steps of each training that are traced.
    """

    system: Literal["self_retrieval"] = "self_retrieval"
    seed: CountOrZero = 0
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    profile_steps: CountOrZero = 0
    mesh: MeshConfig = MeshConfig()
    model: ReaderConfig = ReaderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(
        cities=40, countries=60, train=100, dev=60, test=100, talk_pages=1
    )
    examples: ExamplesConfig = ExamplesConfig()
    tuning: TuningConfig = TuningConfig()
    train: TrainConfig = TrainConfig(batch_size=16)
    search: SearchConfig = SearchConfig()
    dense: DenseConfig = DenseConfig()
