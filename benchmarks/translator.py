"""Whether a made adapter is its document's: the parameter translator on documents it never saw.

    python benchmarks/translator.py RUN [--init 1e-7 0.02] [--learning-rate 1e-4] [--epochs=2]
        [--documents N ...] [--held=24] [--out=FILE] -- FLAGS
    python benchmarks/translator.py RUN --finished [--held=24] [--out=FILE] -- FLAGS

RUN is the work folder of a run of Parametric RAG, FLAGS those that `launch/train.py` made it with.
For every width of the first weights, learning rate and number of documents a translator is trained
on documents that have adapters: those of the run's own translator or, without one, those that the
run's questions find. All take as many steps as an epoch of the most documents is long, times the
epochs. Then other documents are translated, and the rules' questions about them are asked without
the document: the negative log-likelihood of the answer, a token, with the document's made adapter,
with another such document's, and with none; and so are those about as many of the documents that
were trained on, also with their trained adapters. No question of the run is asked: this is for
choices. With --finished it is the run's own translator that is tried, and nothing is trained.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench import describe_machine, split_arguments, write_report
from jaxtyping import Array, Bool, Float, Int, PyTree
from tqdm import tqdm

from rag_jax import lora
from rag_jax.commands.finished import OPENING, find_run
from rag_jax.data.batches import pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.evaluation.pairs import compare_pairs
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.prag.augment import list_augmented, list_documents
from rag_jax.systems.prag.data import make_examples
from rag_jax.systems.prag.pipeline import list_stages
from rag_jax.systems.prag.rules import ask_by_rules
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.translate import (
    AUGMENT,
    DOCUMENTS,
    ENCODE,
    OTHERS,
    TRAIN,
    WIDTH,
    make_training,
    translate_batch,
)
from rag_jax.systems.prag.translator import list_adapted
from rag_jax.training.fit import PARAMS


class Asked(NamedTuple):
    """A question about a document: the document's place, the prompt and the answer as tokens."""

    document: int
    prompt: list[int]
    answer: list[int]


class Tried(NamedTuple):
    """Documents that a translator is tried on: their states, and questions about them."""

    states: Float[np.ndarray, "H E"]
    asked: list[Asked]


class Lesson(NamedTuple):
    """What a translator is trained on and tried on: documents, the first of them, and others.

    Attributes:
        available: number of documents that could be trained on; those here are drawn of them.
    """

    session: Session
    available: int
    states: Float[np.ndarray, "N E"]
    examples: list[list[list[int]]]
    load: Callable[[int], PyTree]
    seen: Tried
    held: Tried
    finished: PyTree | None


def prepare(
    session: Session, workdir: Path, *, held: int, counts: Sequence[int], finished: bool
) -> Lesson:
    """Draws documents that have adapters, and others, and reads them and their examples.

    Args:
        held: number of documents that a translator is tried on, of either kind.
        counts: numbers of documents that are trained on; by default all that have adapters.
        finished: whether the run's own translator is wanted.
    """
    c, format, made = session.config, session.format, session.make_translator()
    taught, stages, encoded = {}, ("augment",), "encode"
    if c.translator.documents:
        taught, stages, encoded = OTHERS, (DOCUMENTS, AUGMENT), ENCODE
    needed = ("corpus", "retrieve", *stages, encoded, *([TRAIN] if finished else []))
    context = open_stages(list_stages(session), workdir, needed)
    session.open_corpus(context.path("corpus", ""))
    documents, augmented = list_augmented(context, session.passages, **taught)
    store = session.open_store(context.path(encoded, "adapters"), session.variants["encode"])
    found = list_documents(context.path("retrieve", "found.jsonl"), session.passages)
    used = {document.id for document in (*found, *documents)}
    others = [passage for passage in session.passages if passage.id not in used]
    available = len(documents)
    if max(counts, default=0) > available:
        sys.exit(f"only {available} documents have adapters: lower --documents or --held")
    rng = np.random.default_rng(c.seed)
    unseen = [others[row] for row in rng.permutation(len(others))[:held].tolist()]
    drawn = rng.permutation(available)[: max(counts, default=available)].tolist()
    documents, augmented = [documents[i] for i in drawn], [augmented[i] for i in drawn]

    def load(i: int) -> PyTree:
        adapters, lost = store.load([documents[i].id], rows=1)
        if lost:
            sys.exit(next(iter(lost.values())))
        return adapters

    def ask_about(passages: Sequence[Passage]) -> list[Asked]:
        return [
            Asked(i, format.encode_prompt(pair.question), format.encode_answer(pair.answer))
            for i, passage in enumerate(passages)
            for pair in ask_by_rules(passage, count=c.augment.questions)
        ]

    states, seen = made.read_all(documents), min(held, *counts, available)
    return Lesson(
        session,
        available,
        states,
        [
            make_examples(format, document, texts, questions=c.augment.questions)
            for document, texts in zip(documents, augmented, strict=True)
        ],
        load,
        Tried(states[:seen], ask_about(documents[:seen])),
        Tried(made.read_all(unseen), ask_about(unseen)),
        session.make_translator(context.path(TRAIN, PARAMS)).params if finished else None,
    )


def train(
    lesson: Lesson, *, init: float, learning_rate: float, trained_on: int, steps: int
) -> tuple[PyTree, list[float]]:
    """The translator, trained on a document a step, and the language model's loss of each step.

    Args:
        trained_on: number of documents, the first.
    """
    session = lesson.session
    c, base = session.config, session.base
    settings = replace(c.translator, init=init, learning_rate=learning_rate, batch_size=1)
    options = {"tuning": c.tuning, "translator": settings, "mesh": session.mesh, "seed": c.seed}
    loss, trainable = make_training(base, list_adapted(session.adapter_shapes), **options)
    optimizer = optax.adamw(learning_rate, weight_decay=settings.weight_decay)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: Any, frozen: PyTree, arrays: dict[str, Any]):
        (_, named), gradient = jax.value_and_grad(loss, has_aux=True)(params, frozen, arrays)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, named["language"]

    params = trainable.init(base.params)
    state, losses = optimizer.init(params), []
    rng = np.random.default_rng(c.seed)
    epochs = -(-steps // trained_on)
    order = [(epoch, i) for epoch in range(epochs) for i in rng.permutation(trained_on).tolist()]
    name = f"first weights {init:g}, rate {learning_rate:g}, {trained_on} documents"
    for epoch, i in tqdm(order[:steps], desc=name, unit="steps"):
        rows = lesson.examples[i]
        tokens, mask = pad_row(rows[epoch % len(rows)])
        arrays = {"states": lesson.states[[i]], "tokens": tokens, "mask": mask}
        arrays |= {"weight": np.ones(1, np.float32), "adapters": lesson.load(i)}
        params, state, language = step(params, state, base.params, arrays)
        losses.append(float(language))
    return params, losses


def pad_row(row: Sequence[int]) -> tuple[Int[np.ndarray, "1 T"], Bool[np.ndarray, "1 T"]]:
    """A row as a batch, as wide as it has to be."""
    return pad_rows([row], round_up(len(row), WIDTH), pad_id=0, batch=1)


@partial(jax.jit, static_argnames=("model", "scale"))
def read_tokens(
    model: Decoder,
    params: PyTree,
    adapter: PyTree,
    tokens: Int[Array, "1 T"],
    mask: Bool[Array, "1 T"],
    *,
    scale: float,
) -> Float[Array, "T-1"]:
    """The log-probability of every token but the first, with an adapter."""
    applied = lora.apply(params, adapter, scale=scale)
    logits = model.apply({"params": applied}, tokens, mask=mask)[0]
    return token_logprobs(logits[:-1].astype(jnp.float32), tokens[0, 1:])


def ask(
    session: Session, asked: Sequence[Asked], pick: Callable[[int], PyTree]
) -> Float[np.ndarray, "H"]:
    """For each document the mean over its questions of the answers' loss, a token.

    Args:
        pick: the adapter that a document's questions are asked with.
    """
    base, scale = session.base, session.config.tuning.scale
    losses: dict[int, list[float]] = {}
    for document, prompt, answer in tqdm(asked, unit="questions"):
        arrays = pad_row(prompt + answer)
        adapter = pick(document)
        read = read_tokens(base.model, base.params, adapter, *arrays, scale=scale)
        end = len(prompt) + len(answer) - 1
        losses.setdefault(document, []).append(-np.asarray(read)[end - len(answer) : end].mean())
    return np.asarray([np.mean(losses[document]) for document in sorted(losses)])


def compare_states(states: Float[np.ndarray, "N E"]) -> float:
    """The mean cosine of the states of two documents."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    count = len(unit)
    return float(((unit @ unit.T).sum() - count) / (count * (count - 1)))


def count_directions(rows: Float[np.ndarray, "N D"]) -> float:
    """The number of directions of a matrix: the exponential of the entropy of its spectrum."""
    squares = np.linalg.svd(rows, compute_uv=False) ** 2
    shares = squares[squares > 0] / squares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def weigh(
    session: Session,
    asked: Sequence[Asked],
    make: Callable[[int], PyTree],
    alone: Float[np.ndarray, "H"],
) -> dict[str, Any]:
    """The losses of questions with their documents' adapters, with another's and with none.

    Args:
        make: the adapter of a document.
        alone: the losses with none.
    """
    count = 1 + max(question.document for question in asked)
    makers = {"own": make, "other": lambda i: make((i + 1) % count)}
    losses = {"none": alone} | {name: ask(session, asked, own) for name, own in makers.items()}
    return {
        "losses": {name: float(values.mean()) for name, values in losses.items()},
        "other_minus_own": compare_pairs(losses["other"], losses["own"]),
    }


def describe(
    lesson: Lesson, params: PyTree, alone: dict[str, Float[np.ndarray, "H"]]
) -> dict[str, Any]:
    """What a translator makes of documents that it did not see, and of some that it did.

    Args:
        alone: the losses without an adapter, of the "held" documents and of the "seen" ones.
    """
    session = lesson.session
    kernels, count = list_adapted(session.adapter_shapes), len(lesson.held.states)

    def translate(states: Float[np.ndarray, "N E"]) -> tuple[PyTree, Callable[[int], PyTree]]:
        bank = translate_batch(params, jnp.asarray(states), kernels=kernels)
        return bank, lambda i: jax.tree.map(lambda leaf: leaf[i], bank)

    bank, make = translate(lesson.held.states)
    _, make_seen = translate(lesson.seen.states)
    factors = np.concatenate([leaf.reshape(count, -1) for leaf in jax.tree.leaves(bank)], axis=1)
    layer = (max(kernel.layer for kernel in kernels) + 1) // 2
    units, directions = [], []
    for weights in (side for kind in params.values() for side in kind.values()):
        down = np.asarray(weights["down"][layer])
        inputs = np.concatenate([lesson.held.states, np.full((count, 1), layer)], axis=1)
        units.append(((inputs @ down).max(axis=0) > 0).sum() / down.shape[1])
        directions.append(count_directions(down))
    return {
        "documents": count,
        **weigh(session, lesson.held.asked, make, alone["held"]),
        "seen": weigh(session, lesson.seen.asked, make_seen, alone["seen"]),
        "directions_of_adapters": count_directions(factors - factors.mean(axis=0)),
        "directions_of_first_weights": float(np.mean(directions)),
        "units_ever_active": float(np.mean(units)),
    }


def main() -> None:
    """Trains a translator for every setting, and writes what each makes of the held-out ones."""
    own, flags = split_arguments()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=expand_path)
    parser.add_argument("--finished", action="store_true", help="try the run's own translator")
    parser.add_argument("--init", type=float, nargs="+", default=[1e-7, 0.02])
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-4])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--documents", type=int, nargs="+", default=[], help="by default all")
    parser.add_argument("--held", type=int, default=24)
    parser.add_argument("--out", type=expand_path, help="results file, JSON")
    arguments = parser.parse_args(own)
    run, _ = find_run([*flags, f"--workdir={arguments.run}"], OPENING, "ask")
    session, results = run.open_session(), []
    with jax.set_mesh(session.mesh):
        # For a finished translator those that it is tried on are enough.
        counts = [arguments.held] if arguments.finished else arguments.documents
        options = {"held": arguments.held, "counts": counts, "finished": arguments.finished}
        lesson = prepare(session, run.workdir, **options)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), session.adapter_shapes)

        def load(i: int) -> PyTree:
            return jax.tree.map(lambda leaf: leaf[0], lesson.load(i))

        # What is the same for every translator.
        asked = {"held": lesson.held.asked, "seen": lesson.seen.asked}
        alone = {name: ask(session, own, lambda _: nothing) for name, own in asked.items()}
        facts: dict[str, Any] = {"cosine_of_states": compare_states(lesson.states)}
        facts["seen, trained adapters"] = weigh(session, asked["seen"], load, alone["seen"])
        if arguments.finished:
            facts["trained_on"] = lesson.available
            results.append(facts | describe(lesson, lesson.finished, alone))
            print(json.dumps(results[-1]), flush=True)
        for setting in list_settings(arguments, len(lesson.examples)):
            start = time.perf_counter()
            params, losses = train(lesson, **setting)
            found = {**setting, "seconds": time.perf_counter() - start}
            found["last_loss"] = float(np.mean(losses[-setting["trained_on"] :]))
            results.append(facts | found | describe(lesson, params, alone))
            print(json.dumps(results[-1]), flush=True)
    machine = describe_machine(["jax"])
    write_report(arguments.out, environment=machine, results=results)


def list_settings(arguments: argparse.Namespace, available: int) -> list[dict[str, Any]]:
    """The settings of each training; none for a finished translator."""
    if arguments.finished:
        return []
    counts = arguments.documents or [available]
    steps = arguments.epochs * max(counts)
    settings = itertools.product(arguments.init, arguments.learning_rate, counts)
    names = ("init", "learning_rate", "trained_on")
    return [{**dict(zip(names, setting, strict=True)), "steps": steps} for setting in settings]


if __name__ == "__main__":
    main()
