"""The model as loaded with passages in its prompt: those that each searcher finds, or all of them.

Parametric RAG answers from the documents of one search, with adapters and without. These rows say
what other searches, or none, would give the same model.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Method, Record, compare
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.systems.embeddings import embedding
from rag_jax.systems.prag.answers import answer_sorted
from rag_jax.systems.prag.config import AnswerConfig, DocumentsConfig
from rag_jax.systems.prag.data import Format
from rag_jax.systems.prag.evaluate import grade, name_row
from rag_jax.systems.prag.infer import Engine, Search
from rag_jax.systems.reranking import RERANKED, Reranking
from rag_jax.systems.stages import answer_timed, continue_prompts

CORPUS = "corpus"  # the reader of all passages


def run_search(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    questions: Sequence[Question],
    readers: Sequence[str],
    make_search: Callable[..., Search],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    reranking: Reranking | None,
    retrieve: DocumentsConfig,
) -> None:
    """Finds every reader's passages of each question: `found.jsonl`, rows of `passages`."""
    asked = [question.question for question in questions]
    records: list[Record] = [{"id": question.id} for question in questions]
    searches = {r: "fused" if r == RERANKED else r for r in readers if r != CORPUS}
    with embedding(context, encode_passages, encoding) as embed:
        names = dict.fromkeys(searches.values())
        by = {name: make_search(passages, embed, by=name)(asked) for name in names}
    for reader, name in searches.items():
        found = by[name]
        if reader == RERANKED and reranking is not None:
            found = reranking.order(asked, found, passages)
        for record, ranked in zip(records, found, strict=True):
            record[reader] = [row for row, _ in ranked[: retrieve.passages]]
    write_jsonl(context.folder / "found.jsonl", records)


def run_reading(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    questions: Sequence[Question],
    readers: Sequence[str],
    format: Format,
    base: Pretrained,
    answer: AnswerConfig,
    make_engine: Callable[..., Engine],
    check_length: Callable[[int], None],
) -> None:
    """Answers all questions with every reader's passages in the prompt.

    Raises:
        RagJaxError: a prompt has no room in the model's context.
    """
    found = read_jsonl(context.path("search", "found.jsonl"))

    def answer_found(reader: str) -> list[Record]:
        chosen = [[passages[row] for row in record[reader]] for record in found]
        prompts = [
            format.encode_prompt(question.question, own)
            for question, own in zip(questions, chosen, strict=True)
        ]
        check_length(max(map(len, prompts)) + answer.max_tokens)
        facts = [
            {"prompt_tokens": len(prompt), "passages": [p.id for p in own], "adapters": []}
            for prompt, own in zip(prompts, chosen, strict=True)
        ]
        options = {"make_engine": make_engine, "batch_size": answer.batch_size}
        return answer_sorted(context, name_row(reader), prompts, facts, **options)

    def answer_from_all() -> list[Record]:
        # In one piece, so that the corpus is read once and each question has its share of that.
        run = partial(read_corpus, passages, format, base, answer, check_length)
        return answer_timed(context, name_row(CORPUS), questions, run, batch_size=len(questions))

    ways = {
        reader: answer_from_all if reader == CORPUS else partial(answer_found, reader)
        for reader in readers
    }
    methods = [Method(name_row(reader), way) for reader, way in ways.items()]
    compare(methods, questions, grade, context.folder)


def read_corpus(
    passages: Sequence[Passage],
    format: Format,
    base: Pretrained,
    answer: AnswerConfig,
    check_length: Callable[[int], None],
    questions: Sequence[Question],
) -> list[Record]:
    """Answers with the whole corpus in the prompt, which is read once for all questions."""
    prompts = [format.encode_prompt(question.question, passages) for question in questions]
    check_length(max(map(len, prompts)) + answer.max_tokens)
    sizes: dict[str, Any] = {"max_tokens": answer.max_tokens, "batch_size": answer.batch_size}
    written = continue_prompts(base, prompts, **sizes)
    return [
        {
            "prediction": format.decode_answer(tokens),
            "prompt_tokens": len(prompt),
            "generated_tokens": len(tokens),
            "passages": [],
            "adapters": [],
        }
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def check_corpus_fits(passages: Sequence[Passage], format: Format, *, room: int) -> None:
    """Raises a RagJaxError unless the whole corpus fits a prompt.

    Args:
        room: tokens of a prompt.
    """
    tokens = len(passages)  # at least
    if tokens <= room:
        tokens = len(format.encode_prompt("", passages))
    if tokens > room:
        raise RagJaxError(
            f"config.readers: the corpus has {len(passages):,} passages of at least {tokens:,} "
            f"tokens, but a prompt has room for {room:,}; leave {CORPUS!r} out"
        )
