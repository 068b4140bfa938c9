"""Batches that a run would train on, of examples drawn by their lengths."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rag_jax.data.batches import BatchPlan
from rag_jax.data.packing import Microbatch
from rag_jax.models.io.architectures import EncoderConfig, make_model
from rag_jax.models.io.sizes import find_encoder, find_sizes
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.planning.batches import (
    Corpus,
    StageBatches,
    choose_drawn,
    count_encoding,
    count_steps,
)
from rag_jax.planning.stages import HostWork
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Example
from rag_jax.systems.rag.train import plan_questions
from rag_jax.training.rows import list_costs, list_sampled

# Tokens around the texts: of `title / text // question` with its ends, and of the prompts.
_MARKS = {"source": 4, "prompt": 9, "chat": 22}


def list_heads(config: RAGConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    name, sizes = config.generator.name, find_sizes(config.generator.name)
    if isinstance(sizes, EncoderConfig):
        raise RagJaxError(f"config.generator.name={name}: is no generator but an encoder")
    find_encoder("retriever.name", config.retriever.name)
    is_seq2seq = isinstance(sizes, BartConfig)
    heads = [sizes.encoder_heads, sizes.decoder_heads] if is_seq2seq else [sizes.num_heads]
    return {"config.generator.name": int(np.gcd.reduce(heads))}


def list_counts(config: RAGConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    return {"trained": config.train.questions, "asked": config.decode.questions}


def list_host(config: RAGConfig, corpus: Corpus) -> Iterator[HostWork]:
    """What the host does: the index and its searches."""
    if config.index.backend != "scann":
        return
    yield HostWork("index", "ScaNN: build", corpus.passages)
    trainings = 1 + config.train.generator
    searches = trainings * config.train.epochs * corpus.trained + corpus.asked
    yield HostWork("trainings and evaluate", "ScaNN: search", searches * corpus.passages)


def list_batches(config: RAGConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: the index and both trainings."""
    c, rng = config, np.random.default_rng(config.seed)
    yield count_encoding(
        "index", c.retriever, corpus.passages, lambda n: corpus.lengths.draw("text", n, rng)
    )
    trained = _count_training(c, corpus, rng)
    for joint in (False, True) if c.train.generator else (True,):
        yield replace(trained, stage="joint" if joint else "frozen")


def _count_training(config: RAGConfig, corpus: Corpus, rng: np.random.Generator) -> StageBatches:
    """The batches of a training; with passages of any search, both trainings have the same."""
    c, sizes = config, find_sizes(config.generator.name)
    drawn, scaled = choose_drawn(c.train, corpus.trained)
    examples = draw_examples(c, corpus, drawn, rng)
    plan = BatchPlan([0] * drawn, batch_size=c.train.batch_size, seed=c.seed)
    sampled = [[examples[i] for i in plan.examples_at(step)] for step in list_sampled(plan)]
    packing = plan_questions(
        sampled,
        make_model(sizes),
        max_length=c.generator.max_length,
        answer=max(len(example.target) for example in examples),
        **list_costs(plan, scaled, sizes),
    )

    def pack(step: int) -> tuple[int, list[Microbatch]]:
        chosen = [examples[i] for i in plan.examples_at(step)]
        useful = sum(example.measure(packing.start_ids).tokens for example in chosen)
        return useful, packing.group(chosen)

    steps = map(pack, range(plan.num_steps_per_epoch))
    return count_steps("", c.train, corpus.trained, steps, packing=packing)


def draw_examples(
    config: RAGConfig, corpus: Corpus, count: int, rng: np.random.Generator
) -> list[Example]:
    """Questions of drawn lengths, each after each of its passages, without their tokens."""
    draw, docs = corpus.lengths.draw, min(config.passages, corpus.passages)
    is_seq2seq = isinstance(find_sizes(config.generator.name), BartConfig)
    kind = "source" if is_seq2seq else "chat" if config.generator.chat else "prompt"
    questions = draw("question", count, rng) + _MARKS[kind]
    passages = draw("title", count * docs, rng) + draw("passage", count * docs, rng)
    inputs = questions[:, None] + passages.reshape(count, docs)
    inputs = np.minimum(inputs, config.generator.max_length)
    answers = draw("answer", count, rng) + 1
    return [
        Example([range(n) for n in row], range(answer))
        for row, answer in zip(inputs.tolist(), answers.tolist(), strict=True)
    ]
