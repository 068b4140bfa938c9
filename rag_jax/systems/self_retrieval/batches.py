"""Batches that a run would train on, of examples drawn by their lengths."""

from collections.abc import Iterator

import numpy as np

from rag_jax.config import TrainConfig
from rag_jax.models.io.sizes import find_decoder
from rag_jax.planning.batches import Corpus, StageBatches, choose_drawn, count_packed
from rag_jax.planning.contrastive import count_pairs
from rag_jax.planning.stages import HostWork
from rag_jax.systems.self_retrieval.config import ExamplesConfig, SelfRetrievalConfig
from rag_jax.training.rows import Row, plan_rows

# Tokens around the texts: `Question: ...\n\n Related document title:`, the content's heading, the
# cue for the assessment, the acceptance before an answer, and a rejection with its end.
_QUESTION, _HEADING, _CUE, ACCEPT, REJECT = 9, 6, 4, 9, 6
_WORD = 1.5  # tokens of a word
_SENTENCES = 3  # of a passage of a hundred words that are long enough, as measured on SQuAD's


def list_heads(config: SelfRetrievalConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    return {"config.model.name": find_decoder("model.name", config.model.name).num_heads}


def list_counts(config: SelfRetrievalConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    del config
    return {"trained": 0, "asked": 0}


def list_host(config: SelfRetrievalConfig, corpus: Corpus) -> Iterator[HostWork]:
    """What the host does: BM25 for negatives and as a baseline, and the tries."""
    yield HostWork("negatives", "BM25: build", corpus.passages)
    searches = corpus.trained + corpus.asked
    yield HostWork("negatives and evaluate", "BM25: search", searches * corpus.passages)
    yield HostWork("trie", "trie: build", corpus.passages * (1 + config.ablations))


def list_batches(config: SelfRetrievalConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: both trainings, and the dense encoder's."""
    c, rng, e = config, np.random.default_rng(config.seed), config.examples
    if c.indexing.epochs:
        numbers = {"index": corpus.passages * _count_sentences(e.indexing_sentences)}
        yield _count_training("indexing", c.indexing, numbers, c, corpus, rng)
    numbers = {"index": corpus.passages * _count_sentences(e.sentences)}
    numbers["positive"] = corpus.trained * e.positives * e.repeats
    numbers["negative"] = corpus.trained * (e.same + e.other) * e.repeats
    yield _count_training("train", c.train, numbers, c, corpus, rng)
    if c.dense.train.epochs:
        sizes = {"max_length": c.dense.encoder.max_length, "kept": c.dense.hard}
        yield count_pairs("dense", c.dense.train, corpus, **sizes, seed=c.seed)


def _count_sentences(setting: int) -> int:
    return min(setting or _SENTENCES, _SENTENCES)


def _count_training(
    stage: str,
    settings: TrainConfig,
    numbers: dict[str, int],
    config: SelfRetrievalConfig,
    corpus: Corpus,
    rng: np.random.Generator,
) -> StageBatches:
    """The batches of a training on as many rows of each kind."""
    total = sum(numbers.values())
    drawn, scaled = choose_drawn(settings, total)
    limits = config.model.max_text, config.examples
    rows = [
        row
        for kind, number in numbers.items()
        for row in draw_rows(kind, round(number * drawn / total), *limits, corpus, rng)
    ]
    strata = [2 * ("retrieval" in row.spans) + ("assessment" in row.spans) for row in rows]
    sizes = find_decoder("model.name", config.model.name)
    plan, packing = plan_rows(rows, scaled, sizes, strata=strata, seed=config.seed)
    return count_packed(stage, settings, total, plan, packing)


def draw_rows(
    kind: str,
    count: int,
    max_text: int,
    examples: ExamplesConfig,
    corpus: Corpus,
    rng: np.random.Generator,
) -> list[Row]:
    """Training rows of drawn lengths, without their tokens.

    Args:
        kind: "index" for a sentence with its passage, "positive" for a question with a passage that
            answers it, "negative" for one with another passage.
        max_text: number of tokens that are read of a passage.
    """
    draw = corpus.lengths.draw
    asked = draw("sentence" if kind == "index" else "question", count, rng) + _QUESTION
    headed = draw("title", count, rng) + _HEADING
    read = np.minimum(draw("passage", count, rng), max_text)
    written = read
    if examples.target == "prefix":
        written = np.minimum(read, round(_WORD * examples.prefix_words))
    answers = draw("answer", count, rng) + 1
    if examples.assessment == "phrase":
        answers += ACCEPT

    def make(i: int) -> Row:
        start, stop = int(asked[i]), int(asked[i] + headed[i] + written[i])
        spans = {} if kind == "negative" else {"retrieval": (start, stop)}
        if kind == "index":
            return Row("", range(stop), spans)
        cue = int(asked[i] + headed[i] + read[i]) + _CUE
        end = cue + (REJECT if kind == "negative" else int(answers[i]))
        return Row("", range(end), {**spans, "assessment": (cue, end)})

    return [make(i) for i in range(count)]
