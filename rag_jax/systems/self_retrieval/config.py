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
    """What is trained on.

    `target` is what is generated of a passage: all of it (the paper), or its first `prefix_words`
    (the released code), enough to tell it from others. `assessment` is how the model judges a
    passage: by "can answer the query" or "cannot answer the query" before the answer (the paper),
    or by the answer itself or "cannot extract answer" (the code). Each passage is indexed by
    `sentences` of its sentences, 0 for all; each question has so many negatives of the `same`
    document and of `other` ones, those that BM25 finds.
    """

    target: Literal["passage", "prefix"] = "passage"
    prefix_words: Count = 10
    assessment: Literal["phrase", "answer"] = "phrase"
    sentences: CountOrZero = 1
    same: CountOrZero = 1
    other: CountOrZero = 2


@dataclass(frozen=True)
class SearchConfig:
    """Retrieval: `titles` beams for the title, under each `passages` beams for the passage.

    The method "trie" follows every beam until its passage is known; "reference" is the released
    code's: beams part at the passage's first token, and each goes on greedily. Scores are softmaxes
    of `p(title) / tau`, over the titles, and of `(1 - p(reject)) / delta`, over the passages of a
    title (the code) or of all titles. Probabilities are of whole texts, "sum" of log-probabilities
    (the paper), or their geometric mean over tokens, "mean" (the code).
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
    """The dense encoder that the method is compared with, as it is and trained on the same
    questions with `hard` of BM25's negatives kept for each."""

    encoder: EncoderConfig = EncoderConfig()
    train: ContrastiveConfig = ContrastiveConfig(batch_size=16)
    hard: Count = 10


@dataclass(frozen=True)
class SelfRetrievalConfig:
    """Self-Retrieval (Tang et al. 2024). `ablations` trains two more models: without indexing, and
    without titles; so many `profile_steps` of each training are traced."""

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
