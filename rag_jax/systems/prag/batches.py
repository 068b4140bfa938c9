"""Batches that a run would train on, of documents drawn by their lengths."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from rag_jax.data.batches import round_up
from rag_jax.data.packing import Microbatch
from rag_jax.data.words import count_words
from rag_jax.models.io.sizes import find_decoder
from rag_jax.planning.batches import (
    Corpus,
    Shape,
    StageBatches,
    choose_drawn,
    count_encoding,
    count_packed,
    count_steps,
)
from rag_jax.planning.stages import HostWork
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.data import group_documents, list_variants
from rag_jax.systems.prag.demonstrations import DEMONSTRATIONS
from rag_jax.systems.prag.translate import (
    ENCODE,
    EVALUATE_TRANSLATED,
    TRAIN,
    TRANSLATE,
    WIDTH,
    count_together,
)
from rag_jax.training.rows import PROGRAM_TOKENS, Row, plan_rows

# Tokens of a prompt around its texts, in a chat template and in plain text: the instruction,
# `Question: ...` and `The answer is`; and of `Passage 1: ...: ...`.
_CHAT, _PLAIN, PASSAGE_MARKS = 45, 8, 6
_WORD = 1.5  # tokens of a word
_FULL_ANSWER = 12  # tokens of a sentence around an answer, with reasoning
_MOST = 200_000  # documents that are drawn


def list_heads(config: PRAGConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    return {"config.model.name": find_decoder("model.name", config.model.name).num_heads}


def list_counts(config: PRAGConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    return {"trained": config.warm_up.questions, "asked": config.questions}


def list_host(config: PRAGConfig, corpus: Corpus) -> Iterator[HostWork]:
    """What the host does: BM25, and the adapters' files."""
    if config.retrieve.by_words:
        yield HostWork("retrieve", "BM25: build", corpus.passages)
        yield HostWork("retrieve", "BM25: search", corpus.asked * corpus.passages)
    documents, taught = count_documents(config, corpus), count_taught(config, corpus)
    merged = corpus.asked * config.retrieve.passages
    yield HostWork("encode", "adapters: write", documents * len(list_variants(config)))
    if taught:
        yield HostWork(ENCODE, "adapters: write", taught)
        yield HostWork(TRAIN, "adapters: read", taught * config.translator.epochs)
        yield HostWork(TRANSLATE, "adapters: write", documents)
        yield HostWork(EVALUATE_TRANSLATED, "adapters: read", merged)
    yield HostWork("evaluate", "adapters: read", merged)


def count_documents(config: PRAGConfig, corpus: Corpus) -> int:
    """The number of documents that the questions find, at most."""
    return min(corpus.passages, corpus.asked * config.retrieve.passages)


def count_taught(config: PRAGConfig, corpus: Corpus) -> int:
    """The number of documents that the translator is trained on: others than the questions find."""
    return min(config.translator.documents, corpus.passages - count_documents(config, corpus))


def list_batches(config: PRAGConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: the warm-up and the documents' banks."""
    c, rng = config, np.random.default_rng(config.seed)
    if c.retrieve.by_encoder:
        draw = lambda n: corpus.lengths.draw("text", n, rng)  # noqa: E731
        yield count_encoding("retrieve", c.retrieve.encoder, corpus.passages, draw)
    if any(variant.start == "warm" for variant in list_variants(c).values()):
        yield _count_warm_up(c, corpus, rng)
    yield _count_encoding("encode", c, count_documents(c, corpus), corpus, rng)
    if taught := count_taught(c, corpus):
        yield _count_encoding(ENCODE, c, taught, corpus, rng)
        yield _count_translator(c, taught, corpus, rng)


def _count_warm_up(config: PRAGConfig, corpus: Corpus, rng: np.random.Generator) -> StageBatches:
    c = config
    drawn, scaled = choose_drawn(c.warm_up, corpus.trained)
    prompts = count_prompt(c) + corpus.lengths.draw("question", drawn, rng)
    tokens = (prompts + _draw_answers(c, corpus, drawn, rng)).tolist()
    rows = [Row("", range(end), {"text": (1, end)}) for end in tokens]
    sizes, strata = find_decoder("model.name", c.model.name), [0] * drawn
    plan, packing = plan_rows(rows, scaled, sizes, strata=strata, seed=c.seed)
    return count_packed("warm_up", c.warm_up, corpus.trained, plan, packing)


def _count_encoding(
    stage: str, config: PRAGConfig, documents: int, corpus: Corpus, rng: np.random.Generator
) -> StageBatches:
    """A step of a group of documents is one example of each."""
    c = config
    lengths = draw_documents(c, corpus, min(documents, _MOST), rng)
    groups = group_documents(
        lengths,
        together=c.encode.together,
        program_tokens=count_program_tokens(c.encode.program_tokens, on_cpu=PROGRAM_TOKENS),
        multiple=count_data_rows(),
    )
    times = c.encode.epochs * documents / len(lengths)
    widths, counts = np.unique(np.ravel(groups.widths), return_counts=True)
    pairs = zip(widths.tolist(), counts.tolist(), strict=True)
    runs = {Shape("documents", groups.size, width): times * count for width, count in pairs}
    steps = round(times * np.size(groups.widths))
    return StageBatches(stage, steps, np.size(groups.widths), 1 - groups.padding, runs, groups)


def _count_translator(
    config: PRAGConfig, documents: int, corpus: Corpus, rng: np.random.Generator
) -> StageBatches:
    """A step is one example of each of a batch's documents, in the first epoch the first."""
    c, batch = config, config.translator.batch_size
    drawn, _ = choose_drawn(c.translator, documents)
    lengths = draw_documents(c, corpus, drawn, rng)[:, 0]

    def pack(start: int) -> tuple[int, list[Microbatch]]:
        rows = lengths[start : start + batch]
        width = round_up(int(rows.max()), WIDTH)
        size = count_together(width, c.translator)
        parts = -(-len(rows) // size)
        return int(rows.sum()), [Microbatch([], size, width, "documents")] * parts

    return count_steps(TRAIN, c.translator, documents, map(pack, range(0, drawn, batch)))


def draw_documents(
    config: PRAGConfig, corpus: Corpus, count: int, rng: np.random.Generator
) -> Int[np.ndarray, "D E"]:
    """The numbers of tokens of documents' examples; see `data.make_examples`."""
    c, draw = config, corpus.lengths.draw
    versions = 1 + c.augment.rewrites
    titles = draw("title", count, rng) + PASSAGE_MARKS
    texts = np.minimum(draw("passage", count * versions, rng), c.model.max_text)
    read = titles[:, None] + texts.reshape(count, versions)
    prompt = count_prompt(c)
    if not c.augment.questions:
        return prompt + read
    examples = []
    for i in range(c.augment.questions):
        asked = prompt + draw("question", count, rng) + _draw_answers(c, corpus, count, rng)
        given = read if i < (c.augment.questions + 1) // 2 else np.zeros((count, 1), int)
        examples.append(asked[:, None] + given)
    return np.concatenate(examples, axis=1)


def count_prompt(config: PRAGConfig) -> int:
    """Tokens of a prompt without passages and question: instruction, worked examples, cue."""
    shown = DEMONSTRATIONS[: config.prompt.demonstrations]
    words = sum(count_words(f"{question} {answer}") for question, answer in shown)
    return (_CHAT if config.model.chat else _PLAIN) + round(_WORD * words)


def _draw_answers(
    config: PRAGConfig, corpus: Corpus, count: int, rng: np.random.Generator
) -> Int[np.ndarray, "N"]:
    answers = corpus.lengths.draw("answer", count, rng) + 1
    return answers + _FULL_ANSWER * config.prompt.reasoning
