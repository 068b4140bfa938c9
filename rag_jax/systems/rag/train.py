"""Training the generator, and the question's encoder with it, by the marginal likelihood."""

import collections
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.pipeline.stage import StageContext, log
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    Rules,
    abstract_params,
    count_data_rows,
    shard_batch,
    shard_params,
)
from rag_jax.systems.rag.data import (
    Example,
    encode_queries,
    pack_examples,
    pack_queries,
)
from rag_jax.systems.rag.lookup import WINDOW, Lookup
from rag_jax.systems.rag.loss import rag_loss, score_passages
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.trainable import apply_tuned, cast, init_tuned, tune

if TYPE_CHECKING:
    from rag_jax.systems.rag.pipeline import Session


def init_trainable(session: "Session", params: Any, query: Any, *, joint: bool) -> Any:
    """What is trained before the first step: of the generator, and the question's encoder."""
    tuned = init_tuned(session.config.tuning, params, seed=session.config.seed)
    trained = {"generator": tuned}
    return trained | {"query": cast(query, jnp.float32)} if joint else trained


def find_rules(session: "Session") -> dict[str, Rules]:
    """How the parts of a trained tree are split over the mesh."""
    return {"generator": BART_RULES if session.is_seq2seq else DECODER_RULES, "query": BERT_RULES}


def _place(session: "Session", tree: Any, put: Callable[..., Any]) -> Any:
    """A trained tree, placed or described by its parts' rules."""
    rules = find_rules(session)
    return {name: put(part, session.mesh, rules[name]) for name, part in tree.items()}


def describe_trainable(session: "Session", *, joint: bool) -> Any:
    """What `init_trainable` gives, as descriptions of arrays."""
    params = session.generator.params, session.encoder.params
    abstract = jax.eval_shape(partial(init_trainable, session, joint=joint), *params)
    return _place(session, abstract, abstract_params)


def load_trained(session: "Session", folder: Path, *, joint: bool) -> dict[str, Any]:
    """The generator's parameters and the question encoder's, after a training."""
    generator, query = session.generator.params, session.encoder.params
    trained = load_tree(folder, describe_trainable(session, joint=joint))
    join = jax.jit(partial(apply_tuned, session.config.tuning, dtype=session.dtype))
    return {
        "generator": join(trained["generator"], generator),
        "query": trained.get("query", query),
    }


def make_loss(session: "Session", *, joint: bool) -> Callable[..., Any]:
    """The loss by the trained tree; passages are constants, as their encoder is not trained."""
    c = session.config
    model = session.generator.model
    if not session.is_seq2seq:
        model = model.clone(remat=c.tuning.remat)

    def loss(trained, frozen, batch):
        query = trained["query"] if joint else frozen["query"]
        scores = score_passages(session.encoder.model, query, batch, scale=c.retriever.scale)
        params = apply_tuned(
            c.tuning, trained["generator"], frozen["generator"], dtype=session.dtype
        )
        return rag_loss(
            model, params, scores, batch, marginal=c.marginal, smoothing=c.train.smoothing
        )

    return loss


def group_examples(
    examples: Sequence[Example], *, docs: int, budget: int, limit: int
) -> list[tuple[list[int], int, int]]:
    """Microbatches of a step's questions: which they are, rows for how many, and their width.

    Args:
        docs: passages of each question.
        budget: tokens of a microbatch.
        limit: the largest width.
    """
    members: dict[int, list[int]] = collections.defaultdict(list)
    for i, example in enumerate(examples):
        members[min(round_up(example.width, 32), limit)].append(i)
    parts, groups = count_data_rows(), []
    for width, indices in sorted(members.items()):
        count = max(1, budget // (docs * width) // parts) * parts
        groups += [
            (indices[start : start + count], count, width)
            for start in range(0, len(indices), count)
        ]
    return groups


def run_training(session: "Session", context: StageContext, *, joint: bool) -> None:
    """Trains to the end, saves the trained tree as `params` and drops the checkpoints."""
    if (context.folder / "params").exists():
        return
    c, corpus, settings = session.config, session.read_corpus(context), session.config.train
    questions = session.pick_questions(corpus, "train", settings.questions)
    queries = encode_queries(
        session.encoder.tokenizer,
        [question.question for question in questions],
        max_length=c.retriever.max_length,
    )
    plan = BatchPlan(
        [1] * len(questions),
        kinds=[""] * len(questions),
        strata=[0] * len(questions),
        batch_size=settings.batch_size,
        budget=1,
        program_tokens=0,
        seed=c.seed,
    )
    total = settings.epochs * plan.num_steps_per_epoch
    index = session.load_index(context, corpus)
    lookup = Lookup(session, context.folder, corpus, index, plan.examples_at, queries)
    lookup.search(0, lookup.embed(0, session.encoder.params))
    targets = max(len(session.form.encode_answer(q.answers[0])) for q in questions)
    flops: dict[int, float] = {}  # of the steps under way

    def batch_at(number: int) -> tuple[tuple[int, list[tuple[str, Any]]], list[str]]:
        chosen = plan.examples_at(number)
        rows, embeddings = lookup.find(number)
        examples = session.make_examples(corpus, [questions[i] for i in chosen], rows)
        parts = []
        for members, count, width in group_examples(
            examples,
            docs=c.passages,
            budget=settings.microbatch_tokens,
            limit=session.generator.config.max_length,
        ):
            arrays = pack_examples(
                [examples[i] for i in members],
                width=width,
                targets=round_up(targets, 8),
                batch=count,
                scale=1 / len(chosen),
            )
            arrays |= pack_queries(
                [queries[chosen[i]] for i in members],
                embeddings[members],
                width=lookup.width,
                batch=count,
            )
            parts.append(("questions", shard_batch(arrays)))
        flops[number] = _count_flops(session, examples, [queries[i] for i in chosen], joint=joint)
        return (number, parts), [questions[i].id for i in chosen]

    start = init_trainable(session, session.generator.params, session.encoder.params, joint=joint)
    start = _place(session, start, shard_params)
    optimizer = make_tuner(session, total)
    step = make_step({"questions": make_loss(session, joint=joint)}, optimizer)
    frozen = {"generator": None if c.tuning.mode == "full" else session.generator.params}
    if not joint:
        frozen["query"] = session.encoder.params
    first_entropy: list[float] = []

    def take_step(state, batch):
        number, parts = batch
        following = number + 1
        encoder = state.params["query"] if joint else session.encoder.params
        ahead = lookup.embed(following, encoder) if following < total else None
        state, metrics = step(state, frozen, parts)
        # While the device computes the step.
        every = settings.refresh_every if joint else 0
        if every and (following % every == 0 or following == total):
            lookup.refresh(following, state.params["query"])
            if following < total:
                ahead = lookup.embed(following, state.params["query"])
        if following < total:
            lookup.search(following, ahead)
        entropy = lookup.measure_entropy(number)
        _warn_of_collapse(first_entropy, entropy, number)
        return state, {**metrics, "retrieved_entropy": entropy}

    tune(
        context,
        init_state(start, optimizer),
        take_step,
        batch_at,
        total_steps=total,
        checkpoint_every=settings.checkpoint_every,
        flops_at=flops.pop,
        profile_steps=c.profile_steps,
    )


def make_tuner(session: "Session", total_steps: int) -> optax.GradientTransformation:
    """The optimiser; the question's encoder has a rate of its own."""
    settings = session.config.train
    return optax.chain(
        make_optimizer(settings, max(total_steps, 1)),
        optax.masked(
            optax.scale(settings.retriever_rate),
            lambda trained: {name: name == "query" for name in trained},
        ),
    )


def _warn_of_collapse(first: list[float], entropy: float, step: int) -> None:
    """Says once that the same passages come for every question (Lewis et al. 2020, appendix H)."""
    if step < WINDOW:
        first[:] = [entropy]
    elif first and entropy < first[0] / 2:
        log(
            f"warning: at step {step} the retrieved passages' entropy is {entropy:.2f} of its "
            f"largest value, at first {first[0]:.2f}: the retriever may be collapsing; a lower "
            "train.retriever_rate may help"
        )
        first.clear()


def _count_flops(
    session: "Session",
    examples: Sequence[Example],
    queries: Sequence[Sequence[int]],
    *,
    joint: bool,
) -> float:
    """Operations of a step: through the layers there and back, and for gradients of weights."""
    passes = 3 if session.config.tuning.mode == "full" else 2
    read = sum(len(tokens) for example in examples for tokens in example.inputs)
    targets = sum(len(example.target) * len(example.inputs) for example in examples)
    tokens = read if session.is_seq2seq else read + targets
    generator = passes * session.generator.config.count_flops(tokens, targets)
    asked = sum(map(len, queries))
    return generator + (3 if joint else 1) * session.encoder.config.count_flops(asked)
