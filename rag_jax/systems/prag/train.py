"""Training: the adapter of every document, a bank at a time, and the one that they start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from rag_jax.data.batches import pad_rows
from rag_jax.lora.store import AdapterStore
from rag_jax.losses import span_cross_entropy, token_logprobs
from rag_jax.pipeline.stage import StageContext, log
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import DECODER_RULES, abstract_params, count_data_rows, shard_batch
from rag_jax.systems.prag.augment import read_augmented
from rag_jax.systems.prag.data import Augmented, make_examples
from rag_jax.systems.prag.groups import group_documents
from rag_jax.training.bank import init_bank_state, make_bank_step
from rag_jax.training.fit import PROGRAM_TOKENS, tune_rows
from rag_jax.training.rows import Row, target_logprobs
from rag_jax.training.trainable import apply_tuned, init_tuned

if TYPE_CHECKING:
    from rag_jax.systems.prag.pipeline import Session


@dataclass(frozen=True)
class Variant:
    """How documents are encoded: from which start, and with what of their augmentation."""

    start: str
    rewrites: bool = True
    questions: bool = True


def make_document_loss(session: "Session") -> Callable[..., Any]:
    """The loss of one adapter on one example, `-mean_t log p(x_t | x_<t)` (paper, eq. 5).

    It is over every token but the first: those of the passage and of the question as well.
    """
    model = session.base.model.clone(remat=session.config.tuning.remat)

    def loss(adapter, frozen, arrays):
        params = apply_tuned(session.config.tuning, adapter, frozen, dtype=session.dtype)
        tokens, mask = arrays["tokens"][None], arrays["mask"][None]
        logits = model.apply({"params": params}, tokens, mask=mask)
        logprobs = token_logprobs(logits[:, :-1], tokens[:, 1:])
        count = jnp.maximum(mask[:, 1:].sum(), 1)  # one that fills a group up has none
        return span_cross_entropy(logprobs, mask[:, 1:] / count).sum(), {}

    return loss


def open_store(session: "Session", context: StageContext, name: str) -> AdapterStore:
    """The adapters that the stage of that name makes, or made.

    Raises:
        RagJaxError: those there are of another kind.
    """
    c = session.config
    template = jax.eval_shape(partial(init_tuned, c.tuning, seed=c.seed), session.base.params)
    settings = {
        "tuning": c.tuning,
        "encode": c.encode,
        "augment": c.augment,
        "variant": session.variants[name],
        "seed": c.seed,
    }
    folder = context.path(name, "adapters")
    return AdapterStore(folder, template, base=session.base.fingerprint, settings=settings)


def run_encoding(session: "Session", context: StageContext, *, name: str) -> None:
    """Trains an adapter for every document that was augmented, and stores it under its id.

    A document whose training goes astray is told and left out; the others of its group stay. The
    group of an adapter that was lost since is trained again.
    """
    c, variant = session.config, session.variants[name]
    augmented = read_augmented(context)
    passages = [p for p in session.list_documents(context) if p.id in augmented]
    if not passages:
        raise RagJaxError(
            "no document is left to encode: see what the augmentation said of each, or set "
            "config.augment.by='rules'"
        )
    examples = [
        make_examples(
            session.form, p, _reduce(augmented[p.id], variant), questions=c.augment.questions
        )
        for p in passages
    ]
    session.check_length(max(len(tokens) for rows in examples for tokens in rows))
    lengths = np.asarray([[len(tokens) for tokens in rows] for rows in examples])
    groups = group_documents(
        lengths,
        together=c.encode.together,
        program_tokens=PROGRAM_TOKENS,
        multiple=count_data_rows(),
    )
    write_json(
        context.folder / "groups.json",
        {
            "size": groups.size,
            "groups": len(groups.widths),
            "padding": groups.padding,
            "programs": len({width for row in groups.widths for width in row}),
            "tokens": int(lengths.sum()) * c.encode.epochs,
        },
    )
    optimizer = optax.adamw(c.encode.learning_rate, weight_decay=c.encode.weight_decay)
    step = make_bank_step(make_document_loss(session), optimizer)
    start = load_start(session, context, variant.start)
    bank = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (groups.size, *leaf.shape)), start)
    bank = jax.tree.map(jnp.asarray, shard_batch(bank))
    store = open_store(session, context, name)

    def encode(group: Sequence[int]) -> list[dict[str, Any]]:
        widths = groups.widths[groups.order.index(group[0]) // groups.size]
        state, losses = init_bank_state(shard_batch(bank), optimizer), []
        batches = [
            pad_rows([examples[i][e] for i in group], width, pad_id=0, batch=groups.size)
            for e, width in enumerate(widths)
        ]
        for _ in range(c.encode.epochs):
            for tokens, mask in batches:
                arrays = shard_batch({"tokens": tokens, "mask": mask})
                state, metrics = step(state, session.base.params, arrays)
                losses.append(metrics["loss"])
        trained = fetch(state.params)
        history = np.stack(fetch(losses))[:, : len(group)]
        good = np.flatnonzero(np.isfinite(history).all(axis=0) & _find_finite(trained, len(group)))
        if good.size:
            ids = [passages[group[i]].id for i in good]
            store.save(ids, jax.tree.map(lambda leaf: leaf[good], trained))
        records = []
        for i, document in enumerate(group):
            error = None if i in good else "its training went astray (not finite)"
            first, last = (
                (float(np.mean(part)) if error is None else None)
                for part in (history[: len(widths), i], history[-len(widths) :, i])
            )
            records.append(
                {"id": passages[document].id, "first_loss": first, "last_loss": last}
                | {"tokens": int(lengths[document].sum()), "error": error}
            )
        return records

    records = context.map_batches(
        "encoded.jsonl", groups.order, encode, batch_size=groups.size, unit="documents"
    )
    lost = {r["id"] for r in records if not r["error"] and not store.is_whole(r["id"])}
    for start in range(0, len(groups.order), groups.size):
        group = groups.order[start : start + groups.size]
        again = [passages[i].id for i in group if passages[i].id in lost]
        if again:
            log(f"training again: {', '.join(map(repr, again))}, whose adapters are damaged")
            encode(group)
    for record in records:
        if record["error"]:
            log(f"passage {record['id']!r} is left out: {record['error']}")


def _reduce(augmented: Augmented, variant: Variant) -> Augmented:
    rewrites = augmented.rewrites if variant.rewrites else ()
    return Augmented(rewrites, augmented.pairs if variant.questions else ())


def _find_finite(bank: PyTree, count: int) -> np.ndarray:
    """Which of the first adapters have no NaN and no infinity."""
    finite = [
        np.isfinite(leaf[:count]).reshape(count, -1).all(axis=1) for leaf in jax.tree.leaves(bank)
    ]
    return np.logical_and.reduce(finite)


# Warm-up.


def load_start(session: "Session", context: StageContext, start: str) -> PyTree:
    """The adapter that all documents start from, a fresh one or that of the warm-up."""
    c = session.config
    fresh = partial(init_tuned, c.tuning, seed=c.seed)
    if start == "random":
        return fetch(fresh(session.base.params))
    abstract = abstract_params(
        jax.eval_shape(fresh, session.base.params), session.mesh, DECODER_RULES
    )
    return fetch(load_tree(context.path("warm_up", "params"), abstract))


def run_warm_up(session: "Session", context: StageContext) -> None:
    """Trains one adapter on training questions and answers without any passage (section 3.2.3)."""
    c, settings, form = session.config, session.config.warm_up, session.form
    questions = session.list_questions(session.read_corpus(context), "train", settings.questions)
    rows = []
    for question in questions:
        tokens = form.encode_prompt(question.question) + form.encode_answer(question.answers[0])
        rows.append(Row(question.id, tokens, {"text": (1, len(tokens))}))
    session.check_length(max(len(row.tokens) for row in rows))
    model = session.base.model.clone(remat=c.tuning.remat)

    def loss(trained, frozen, batch):
        params = apply_tuned(c.tuning, trained, frozen, dtype=session.dtype)
        return span_cross_entropy(target_logprobs(model, params, batch), batch["text"]).sum(), {}

    tune_rows(
        context,
        rows,
        loss,
        base=session.base,
        mesh=session.mesh,
        tuning=c.tuning,
        settings=settings,
        terms=("text",),
        strata=[0] * len(rows),
        seed=c.seed,
    )
