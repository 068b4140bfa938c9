"""The compiled programs of a run but its searches, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rag_jax.data.batches import round_up
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    change,
    copy,
    describe_cache,
    halve,
    list_wider,
    split_rows,
)
from rag_jax.planning.batches import Drawn
from rag_jax.planning.contrastive import compile_pairs
from rag_jax.planning.planner import Planner
from rag_jax.planning.training import compile_rows
from rag_jax.planning.turns import compile_token
from rag_jax.systems.self_retrieval import session, steps
from rag_jax.systems.self_retrieval.batches import ACCEPT, REJECT
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import TERMS
from rag_jax.systems.self_retrieval.infer import ROW_TOKENS
from rag_jax.systems.self_retrieval.loss import make_loss

CONFIG = SelfRetrievalConfig


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""


def plan(
    config: SelfRetrievalConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any
) -> Planner:
    """Compiles the run's programs: of the trainings all, of questions those beside the searches."""
    session = PlannedSession(config, devices)
    planner, c = Planner(session.mesh, **options), config
    base, trainable = session.base, session.trainable
    loss = make_loss(base.model.clone(remat=c.tuning.remat), trainable)
    for stage, settings in (("indexing", c.indexing), ("train", c.train)):
        if stage in drawn.stages:
            batches = drawn.stages[stage]
            compile_rows(planner, batches, trainable, settings, loss, TERMS, base.params)
    if "dense" in drawn.stages:
        encoders = session.load_encoders()
        held = base.params, encoders.params()
        compile_pairs(planner, drawn.stages["dense"], encoders, c.dense.train, *held)
    planner.hold(base.params)
    _plan_questions(session, planner, drawn)
    return planner


def list_remedies(
    config: SelfRetrievalConfig, name: str
) -> Iterator[tuple[str, SelfRetrievalConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    stage = name.split(",")[0]
    if stage in ("indexing", "train") and "gradients" in name:
        if config.tuning.remat != "full":
            yield change(config, "tuning.remat", "full")
        yield halve(config, f"{stage}.microbatch_tokens")
    elif stage == "evaluate":
        yield halve(config, "search.batch_size")
    yield from list_wider(config)


def _plan_questions(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """Reading a question and its titles, assessing the candidates, and the answer."""
    c, base = session.config.search, session.base
    lm, lengths, batch = (base.model, copy(base.params)), drawn.corpus.lengths, c.batch_size
    runs = {"evaluate": -(-drawn.corpus.asked // batch)}
    sizes = {"B": batch, "T": QUESTION}
    options = {"sizes": sizes, "runs": runs}
    cache, _ = planner.compile("evaluate, read questions", steps.read, *lm, **options)
    rows, width = batch * c.titles, round_up(int(lengths.title[-1]), 8)
    options = {"sizes": {"R": rows, "T": width}, "runs": runs}
    planner.compile("evaluate, read titles", steps.read_titles, *lm, cache, **options)
    # Candidates share rows of a few hundred tokens.
    read = min(int(lengths.text[-1]), session.config.model.max_text) + REJECT
    each = max(1, ROW_TOKENS // read)
    rows = batch * -(-c.titles * c.passages // each)
    sizes = {"R": rows, "T": max(ROW_TOKENS, read), "C": round_up(each, 4), "r": REJECT}
    reject = jax.ShapeDtypeStruct((REJECT,), jnp.int32)
    options = {"sizes": sizes, "runs": runs, "reject": reject}
    planner.compile("evaluate, assess", steps.assess, *lm, cache, **options)
    _plan_answer(session, planner, read, runs)


def _plan_answer(
    session: PlannedSession, planner: Planner, read: int, runs: dict[str, int]
) -> None:
    """The answer after a question and one candidate of `read` tokens."""
    c, base, mesh = session.config.search, session.base, session.mesh
    params, batch = copy(base.params), c.batch_size
    question = describe_cache(base, mesh, batch, QUESTION)
    cache = describe_cache(base, mesh, batch, round_up(read, 64), question)
    hidden = jax.ShapeDtypeStruct((batch, base.config.hidden_size), session.dtype)
    active = jax.ShapeDtypeStruct((batch,), bool)
    hidden, active = split_rows((hidden, active), mesh)
    accept = jax.ShapeDtypeStruct((ACCEPT,), jnp.int32)
    inputs = planner, "evaluate, one token of an answer", base, params, cache
    one = compile_token(*inputs, max_tokens=c.max_answer)
    options = {"max_tokens": c.max_answer, "stop_ids": (0,), "runs": runs}
    options["loop"] = one, c.max_answer - 1
    inputs = base.model, params, cache, hidden, accept, active
    planner.compile("evaluate, answer", steps.answer, *inputs, **options)
