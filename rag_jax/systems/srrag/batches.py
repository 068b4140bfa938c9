"""Batches that a run would train on, of examples drawn by their lengths."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rag_jax.models.io.sizes import find_sizes
from rag_jax.planning.batches import (
    Corpus,
    StageBatches,
    choose_drawn,
    count_encoding,
    count_packed,
)
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Example, plan_examples
from rag_jax.training.rows import Row

# Tokens of the packed sequence around its texts: `Question: ... Background knowledge:<EOQ>`,
# `<EOK> Answer:`, and `[1] ...: ...` around each passage.
QUESTION_MARKS, CUE, PASSAGE_MARKS = 7, 3, 5
_WRITTEN = 0.5  # share of the questions whose label is the model itself, which is not known before


def list_heads(config: SRRAGConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    return {"config.model.name": find_sizes(config.model.name).num_heads}


def list_counts(config: SRRAGConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    return {"trained": config.train_questions, "asked": config.questions}


def list_batches(config: SRRAGConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: the index and both trainings."""
    rng, sizes = np.random.default_rng(config.seed), find_sizes(config.model.name)
    yield count_encoding(
        "index", config.encoder, corpus.passages, lambda n: corpus.lengths.draw("text", n, rng)
    )
    for stage, settings in (("stage1", config.stage1), ("stage2", config.stage2)):
        drawn, scaled = choose_drawn(settings, corpus.trained)
        examples = draw_examples(config, corpus, drawn, rng)
        if stage == "stage1":
            examples = [replace(example, rejected=None) for example in examples]
        plan, packing = plan_examples(examples, scaled, sizes, seed=config.seed)
        yield count_packed(stage, settings, corpus.trained, plan, packing)


def draw_examples(
    config: SRRAGConfig, corpus: Corpus, count: int, rng: np.random.Generator
) -> list[Example]:
    """Training examples of drawn lengths; half of them written, half of them searched.

    What the model writes is as long as a passage, up to its limit.
    """
    draw, limit = corpus.lengths.draw, config.verbalise.max_tokens
    starts = draw("question", count, rng) + QUESTION_MARKS
    answers = draw("answer", count, rng) + 1
    # The chosen and the rejected verbalisation.
    written = np.minimum(draw("passage", 2 * count, rng).reshape(-1, 2), limit)
    # A searched row has the best passage and `max(p - 1, 0)` further ones, p Poisson.
    extra = np.maximum(rng.poisson(config.extra_mean, count) - 1, 0)
    numbers = np.minimum(1 + extra, config.contexts)
    titles, texts = draw("title", numbers.sum(), rng), draw("passage", numbers.sum(), rng)
    passages = titles + np.minimum(texts, config.model.max_text) + PASSAGE_MARKS
    knowledge = np.add.reduceat(passages, np.cumsum(numbers) - numbers)
    kinds = [source.kind for source in config.sources]
    internal, searched = kinds.index("verbalise"), kinds.index("search")

    def make(i: int, source: int) -> Example:
        start, answer = int(starts[i]), int(answers[i])
        if source == searched:
            return Example(source, _make_row(start, int(knowledge[i]), answer), None)
        best, worst = written[i].tolist()
        row, rejected = (_make_row(start, n, a, True) for n, a in ((best, answer), (worst, 0)))
        return Example(source, row, rejected)

    written_by_model = rng.random(count) < _WRITTEN
    return [make(i, internal if own else searched) for i, own in enumerate(written_by_model)]


def _make_row(start: int, knowledge: int, answer: int, written: bool = False) -> Row:
    """A row without its tokens; without an answer it ends at `<EOK>`."""
    spans = {"source": (start, start + 1)}
    end = start + 1 + knowledge
    if written:
        spans["verbalisation"] = (start + 1, end + 1)
    if not answer:
        return Row("", range(end + 1), spans)
    end += CUE
    spans["answer"] = (end, end + answer)
    return Row("", range(end + answer), spans)
