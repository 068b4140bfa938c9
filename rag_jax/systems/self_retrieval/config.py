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
    Seed,
    TrackerName,
    TrainConfig,
    TuningConfig,
    WorldConfig,
)
from rag_jax.search_config import BM25Config, RetrieveConfig


@dataclass(frozen=True)
class ExamplesConfig:
    """The training texts.

    Attributes:
        target: what is generated of a passage: the whole "passage" (the paper), or the "prefix" of
            its first `prefix_words` words (the released code).
        assessment: how the model judges a passage: by the "phrase" "can answer the query" or
            "cannot answer the query" before the answer (the paper), or by the "answer" itself or
            "cannot extract answer" (the released code).
        indexing_sentences: number of a passage's sentences that index the passage in the first run,
            on sentences alone; 0 for all, as in the released code.
        sentences: the same in the second run, on the mix of all tasks; 3 in the released code.
        same: number of a question's negatives drawn from each relevant passage's document; 5 in the
            released code.
        other: number of a question's negatives from other documents, mined by BM25; 0 in the
            released code's recipe, while the paper has negatives of both kinds.
        positives: number of times that a question's row with a relevant passage is trained an
            epoch. In the released code 3 of a relevant passage's 5 rows train the title, and 3 the
            assessment; a negative has 1 row.
        repeats: number of times that all of a question's rows are trained an epoch; 2 in the
            released code.
    """

    target: Literal["passage", "prefix"] = "passage"
    prefix_words: Count = 10
    assessment: Literal["phrase", "answer"] = "phrase"
    indexing_sentences: CountOrZero = 0
    sentences: CountOrZero = 1
    same: CountOrZero = 1
    other: CountOrZero = 2
    positives: Count = 1
    repeats: Count = 1


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
        train: its default rate was chosen on the built-in world's development questions, as
            `search.over` was for the method.
        hard: number of BM25's negatives kept for each question.
    """

    encoder: EncoderConfig = EncoderConfig()
    train: ContrastiveConfig = ContrastiveConfig(batch_size=16)
    hard: Count = 10


@dataclass(frozen=True)
class SelfRetrievalConfig:
    """Self-Retrieval (Tang et al. 2024).

    Attributes:
        ablations: whether to train two more models: without indexing, on the questions alone for as
            many steps as the full model, and without titles.
        indexing: the first training run, on the corpus's sentences alone. Without epochs there is
            none; the released code has 3, as many and at the same rate as the second run.
        train: the second training run, on the mix of all tasks.
        validation: number of development questions, the first ones, that passages are found for
            after each epoch of either run, for the log's curves; 0 for none.
        profile_steps: number of steps of each training that are traced.
        track: where the curves of the run go besides the run's own files.
    """

    system: Literal["self_retrieval"] = "self_retrieval"
    seed: Seed = 0
    evaluate_on: Literal["test", "dev"] = "test"
    ablations: bool = False
    profile_steps: CountOrZero = 0
    track: TrackerName = "none"
    mesh: MeshConfig = MeshConfig()
    model: ReaderConfig = ReaderConfig()
    data: DataConfig = DataConfig()
    world: WorldConfig = WorldConfig(
        cities=40, countries=60, train=100, dev=60, test=100, talk_pages=1
    )
    examples: ExamplesConfig = ExamplesConfig()
    tuning: TuningConfig = TuningConfig()
    indexing: TrainConfig = TrainConfig(epochs=0, batch_size=16)
    train: TrainConfig = TrainConfig(batch_size=16)
    validation: CountOrZero = 0
    search: SearchConfig = SearchConfig()
    dense: DenseConfig = DenseConfig()
    bm25: BM25Config = BM25Config()
    retrieve: RetrieveConfig = RetrieveConfig()
