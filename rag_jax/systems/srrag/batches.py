"""Batches that a run would train on, of examples drawn by their lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from rag_jax.data.batches import choose_bucket, choose_widths
from rag_jax.data.packing import Microbatch, Packing
from rag_jax.models.io.sizes import find_decoder
from rag_jax.planning.batches import (
    STEPS,
    Corpus,
    StageBatches,
    choose_drawn,
    count_batches,
    count_encoding,
    count_packed,
)
from rag_jax.planning.stages import HostWork
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Example, plan_examples
from rag_jax.systems.srrag.label import PROGRAM_TOKENS
from rag_jax.systems.srrag.train import count_scored
from rag_jax.training.rows import Row

# Tokens of the packed sequence around its texts: `Question: ... Background knowledge:<EOQ>`,
# `<EOK> Answer:`, and `[1] ...: ...` around each passage.
QUESTION_MARKS, CUE, PASSAGE_MARKS = 7, 3, 5
PROMPT_MARKS = 12  # of the untrained model's prompt for an answer, after what all prompts share
_WRITTEN = 0.5  # share of the questions whose label is the model itself, which is not known before


def list_heads(config: SRRAGConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    return {"config.model.name": find_decoder("model.name", config.model.name).num_heads}


def list_counts(config: SRRAGConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    return {"trained": config.train_questions, "asked": config.questions}


def list_host(config: SRRAGConfig, corpus: Corpus) -> Iterator[HostWork]:
    """What the host does: the index and its searches."""
    if config.index.backend != "scann":
        return
    yield HostWork("index", "ScaNN: build", corpus.passages)
    searches = corpus.trained + corpus.asked
    yield HostWork("contexts and evaluate", "ScaNN: search", searches * corpus.passages)


def list_batches(config: SRRAGConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: the index, the labels and both trainings."""
    rng, sizes = np.random.default_rng(config.seed), find_decoder("model.name", config.model.name)
    draw = lambda n: corpus.lengths.draw("text", n, rng)  # noqa: E731
    yield count_encoding("index", config.encoder, corpus.passages, draw)
    yield _count_labels(config, corpus, rng)
    for stage, settings in (("stage1", config.stage1), ("stage2", config.stage2)):
        drawn, scaled = choose_drawn(settings, corpus.trained)
        examples = draw_examples(config, corpus, drawn, rng)
        if stage == "stage1":
            examples = [replace(example, rejected=None) for example in examples]
        plan, packing = plan_examples(examples, scaled, sizes, seed=config.seed)
        if stage == "stage2":
            yield _count_reference(config, corpus, examples, packing)
        yield count_packed(stage, settings, corpus.trained, plan, packing)


def _count_labels(config: SRRAGConfig, corpus: Corpus, rng: np.random.Generator) -> StageBatches:
    """The scores of the answers under every context, in batches from the shortest on."""
    c, draw = config.label, corpus.lengths.draw
    total = corpus.trained * config.contexts * len(config.sources)
    count = min(total, STEPS * c.batch_size)
    texts = draw("passage", count, rng)
    found = rng.random(count) < 1 - 1 / len(config.sources)  # one source is the model itself
    limits = np.where(found, config.model.max_text, config.verbalise.max_tokens)
    asked = draw("question", count, rng) + draw("answer", count, rng) + PROMPT_MARKS
    sizes = np.sort(asked + np.minimum(texts, limits)).tolist()
    # As many programs as are worth it for all.
    worth = count_program_tokens(c.program_tokens, on_cpu=PROGRAM_TOKENS)
    widths = choose_widths(sizes, program_tokens=worth * count // total)

    def score(start: int) -> tuple[int, list[Microbatch]]:
        part = sizes[start : start + c.batch_size]
        width = choose_bucket(max(part), widths)
        return sum(part), [Microbatch([], c.batch_size, width, "contexts")]

    steps = map(score, range(0, count, c.batch_size))
    return count_batches("labels", -(-total // c.batch_size), steps)


def _count_reference(
    config: SRRAGConfig, corpus: Corpus, examples: Sequence[Example], packing: Packing
) -> StageBatches:
    """The scores of both verbalisations of every pair under the trained model."""
    pairs, size = [i for i, e in enumerate(examples) if e.rejected], count_scored(config.stage2)
    batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    steps = ((sum(packing.sizes[i].tokens for i in b), packing.group(b)) for b in batches)
    total = -(-round(corpus.trained * len(pairs) / len(examples)) // size)
    return count_batches("reference", total, steps, packing=packing)


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
