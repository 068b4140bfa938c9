"""Training: the warm-up adapter, and the adapter of every document, a bank at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int, PyTree

from rag_jax.config import TuningConfig
from rag_jax.data.batches import pad_rows
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.lora.store import AdapterStore
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.prag.augment import list_augmented, report_left_out
from rag_jax.systems.prag.config import AugmentConfig, EncodeConfig, WarmUpConfig
from rag_jax.systems.prag.data import (
    Augmented,
    Format,
    Groups,
    Variant,
    count_examples,
    group_documents,
    make_examples,
    repeat_examples,
)
from rag_jax.systems.prag.loss import TERMS, make_document_loss, make_warm_up_loss
from rag_jax.training.bank import init_bank_state, make_bank_step
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import PROGRAM_TOKENS, Row, fit_rows
from rag_jax.training.trainable import Trainable, set_passes


def run_warm_up(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    base: Pretrained,
    trainable: Trainable,
    tuning: TuningConfig,
    format: Format,
    warm_up: WarmUpConfig,
    check_length: Callable[[int], None],
    seed: int,
) -> None:
    """Trains one adapter on questions and answers without any passage (paper, section 3.2.3)."""
    rows = []
    for question in train_questions:
        answer = format.encode_answer(format.state_answer(question.answers[0]))
        tokens = format.encode_prompt(question.question) + answer
        rows.append(Row(question.id, tokens, {"text": (1, len(tokens))}))
    check_length(max(len(row.tokens) for row in rows))
    loss = make_warm_up_loss(set_passes(base.model, tuning), trainable)
    options = {"config": base.config, "terms": TERMS, "strata": [0] * len(rows), "seed": seed}
    fit_rows(rows, loss, trainable, warm_up, context.folder, context.progress, **options)


def load_start(context: StageContext, trainable: Trainable, start: str) -> PyTree:
    """The adapter that all documents start from: a fresh one, or that of the warm-up."""
    if start == "random":
        return fetch(trainable.init(trainable.base))
    return fetch(trainable.load(context.path("warm_up", "params")))


def run_encoding(
    context: StageContext,
    *,
    variant: Variant,
    passages: Sequence[Passage],
    base: Pretrained,
    trainable: Trainable,
    tuning: TuningConfig,
    format: Format,
    augment: AugmentConfig,
    settings: EncodeConfig,
    open_store: Callable[..., AdapterStore],
    check_length: Callable[[int], None],
    found: str,
    made: str,
) -> None:
    """Trains an adapter for every augmented document, and stores it under the document's id.

    A document whose training diverges is reported and left out; the other documents of its group
    stay. The group of an adapter that was lost since is trained again.

    Args:
        found, made: the stages that name the documents and that augmented them.
    """
    documents, augmented = list_augmented(context, passages, found=found, made=made)
    reduced = [variant.reduce(texts) for texts in augmented]
    examples = list_examples(format, documents, reduced, augment)
    check_length(max(len(tokens) for rows in examples for tokens in rows))
    lengths = np.asarray([[len(tokens) for tokens in rows] for rows in examples])
    sizes = {"together": settings.together, "multiple": count_data_rows()}
    worth = count_program_tokens(settings.program_tokens, on_cpu=PROGRAM_TOKENS)
    groups = group_documents(lengths, program_tokens=worth, **sizes)
    _write_groups(context, groups, tokens=int(lengths.sum()) * settings.epochs)
    loss = make_document_loss(set_passes(base.model, tuning), trainable)
    start = load_start(context, trainable, variant.start)
    train_group = make_group_trainer(base, loss, settings, groups, examples, start)
    store = open_store(context.folder / "adapters", variant)

    def encode_group(group: Sequence[int]) -> list[dict[str, Any]]:
        trained, losses, per_epoch = train_group(group)
        finite = np.isfinite(losses).all(axis=0) & _find_finite(trained, len(group))
        kept, ids = np.flatnonzero(finite), [documents[i].id for i in group]
        if kept.size:
            store.save([ids[i] for i in kept], jax.tree.map(lambda leaf: leaf[kept], trained))
        return [
            {
                "id": id,
                "first_loss": float(np.mean(losses[:per_epoch, i])) if finite[i] else None,
                "last_loss": float(np.mean(losses[-per_epoch:, i])) if finite[i] else None,
                "tokens": int(lengths[group[i]].sum()),
                "error": None if finite[i] else "its training went astray (not finite)",
            }
            for i, id in enumerate(ids)
        ]

    records = context.map(
        "encoded.jsonl", groups.order, encode_group, batch_size=groups.size, unit="documents"
    )
    _repair(store, records, documents, groups, encode_group)
    report_left_out(records)


def list_examples(
    format: Format,
    documents: Sequence[Passage],
    augmented: Sequence[Augmented],
    augment: AugmentConfig,
) -> list[list[Int[np.ndarray, "T"]]]:
    """The examples of every document, as many as of the whole recipe; 4 bytes a token."""
    count, examples = count_examples(augment), []
    for document, texts in zip(documents, augmented, strict=True):
        made = make_examples(format, document, texts, questions=augment.questions)
        arrays = [np.asarray(tokens, np.int32) for tokens in made]
        examples.append(repeat_examples(arrays, count))
    return examples


def _write_groups(context: StageContext, groups: Groups, *, tokens: int) -> None:
    facts = {"size": groups.size, "groups": len(groups.widths), "padding": groups.padding}
    write_json(
        context.folder / "groups.json", facts | {"programs": groups.programs, "tokens": tokens}
    )


def make_optimizer(settings: EncodeConfig) -> optax.GradientTransformation:
    """The optimiser of every document's adapter."""
    return optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)


def make_group_trainer(
    base: Pretrained,
    loss: LossFunction,
    settings: EncodeConfig,
    groups: Groups,
    examples: Sequence[Sequence[Int[np.ndarray, "T"]]],
    start: PyTree,
) -> Callable[[Sequence[int]], tuple[PyTree, Float[np.ndarray, "S D"], int]]:
    """Makes `train(group)`, which gives a bank `[D, ...]`, losses in nats, and steps an epoch."""
    optimizer = make_optimizer(settings)
    step = make_bank_step(loss, optimizer)
    bank = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (groups.size, *leaf.shape)), start)
    bank = jax.tree.map(jnp.asarray, shard_batch(bank))
    number_of = {first: number for number, first in enumerate(groups.order[:: groups.size])}

    def train(group: Sequence[int]) -> tuple[PyTree, Float[np.ndarray, "S D"], int]:
        widths = groups.widths[number_of[group[0]]]
        state, losses = init_bank_state(shard_batch(bank), optimizer), []
        batches = [
            pad_rows([examples[i][e] for i in group], width, pad_id=0, batch=groups.size)
            for e, width in enumerate(widths)
        ]
        for tokens, mask in settings.epochs * batches:
            arrays = shard_batch({"tokens": tokens, "mask": mask})
            state, metrics = step(state, base.params, arrays)
            losses.append(metrics["loss"])
        history = np.stack(fetch(losses))[:, : len(group)]
        return fetch(state.params), history, len(widths)

    return train


def _repair(
    store: AdapterStore,
    records: Sequence[dict[str, Any]],
    documents: Sequence[Passage],
    groups: Groups,
    encode: Callable[[Sequence[int]], Any],
) -> None:
    """Trains the groups of adapters again that are missing or damaged on disk."""
    lost = {r["id"] for r in records if not r["error"] and not store.is_whole(r["id"])}
    for start in range(0, len(groups.order), groups.size):
        group = groups.order[start : start + groups.size]
        damaged = [documents[i].id for i in group if documents[i].id in lost]
        if damaged:
            log(f"training again: {', '.join(map(repr, damaged))}, whose adapters are damaged")
            encode(group)


def _find_finite(bank: PyTree, count: int) -> Bool[np.ndarray, "D"]:
    """Which of the first `count` adapters have neither NaN nor infinity."""
    leaves = [leaf[:count].reshape(count, -1) for leaf in jax.tree.leaves(bank)]
    return np.logical_and.reduce([np.isfinite(leaf).all(axis=1) for leaf in leaves])
