"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from rag_jax.data.batches import round_up
from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.trie import TrieArrays, choose_gathers
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    copy,
    describe_cache,
    halve,
    list_lighter,
    list_wider,
    split_rows,
)
from rag_jax.planning.batches import Drawn
from rag_jax.planning.contrastive import compile_pairs
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import compile_rows
from rag_jax.planning.turns import compile_paths, compile_token
from rag_jax.systems.self_retrieval import session, steps
from rag_jax.systems.self_retrieval.batches import ACCEPT, REJECT
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import TERMS
from rag_jax.systems.self_retrieval.infer import ROW_TOKENS
from rag_jax.systems.self_retrieval.loss import make_loss
from rag_jax.training.trainable import set_passes

CONFIG = SelfRetrievalConfig

_NODES = 1.5  # of the trie, a passage: as measured on SQuAD's
_TURNS = 12  # tokens of a beam until one passage remains


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""


def plan(
    config: SelfRetrievalConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any
) -> Planner:
    """Compiles the run's programs: of the trainings all, of questions at the largest shapes."""
    session = PlannedSession(config, devices)
    planner, c = Planner(session.mesh, **options), config
    base, trainable = session.base, session.trainable
    loss = make_loss(set_passes(base.model, c.tuning), trainable)
    for stage, settings in (("indexing", c.indexing), ("train", c.train)):
        if stage in drawn.stages:
            batches = drawn.stages[stage]
            compile_rows(planner, batches, trainable, settings, loss, TERMS, base.params)
    if "dense" in drawn.stages:
        encoders = session.load_encoders()
        held = base.params, encoders.params()
        compile_pairs(planner, drawn.stages["dense"], encoders, c.dense.train, *held)
    planner.hold(base.params)
    # What every other retriever finds, and what the model writes.
    reranked = drawn.corpus.asked * (3 + ("dense" in drawn.stages))
    reranker = compile_reranking(planner, c.retrieve.rerank, {"evaluate": reranked})
    planner.hold(base.params, *reranker)
    _plan_questions(session, planner, drawn)
    return planner


def list_remedies(
    config: SelfRetrievalConfig, name: str
) -> Iterator[tuple[str, SelfRetrievalConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    stage = name.split(",")[0]
    if stage in ("indexing", "train") and "gradients" in name:
        yield from list_lighter(config, f"{stage}.microbatch_tokens")
    elif stage == "evaluate":
        yield halve(config, "search.batch_size")
    yield from list_wider(config)


def _plan_questions(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """Reading a question, the searches, assessing the candidates, and the answer."""
    c, base, lengths = session.config.search, session.base, drawn.corpus.lengths
    lm, batch = (base.model, copy(base.params)), c.batch_size
    runs = {"evaluate": -(-drawn.corpus.asked // batch)}
    options = {"sizes": {"B": batch, "T": QUESTION}, "runs": runs, "describe": True}
    read = cache, _ = planner.compile("evaluate, read questions", steps.read, *lm, **options)
    width, greedy = round_up(int(lengths.title[-1]), 8), c.method == "reference"
    settings = {"beams": c.titles, "max_tokens": width, "runs": runs}
    _plan_search(session, planner, "titles", lm[1], *read, drawn.corpus.passages, **settings)
    options = {"sizes": {"R": batch * c.titles, "T": width}, "runs": runs, "describe": True}
    read = planner.compile("evaluate, read titles", steps.read_titles, *lm, cache, **options)
    depth = round_up(int(lengths.title[-1] + lengths.passage[-1]), 16)
    settings = {"beams": c.passages, "max_tokens": depth, "runs": runs, "greedy": greedy}
    _plan_search(session, planner, "passages", lm[1], *read, drawn.corpus.passages, **settings)
    # Candidates share rows of a few hundred tokens.
    text = min(int(lengths.text[-1]), session.config.model.max_text) + REJECT
    each = max(1, ROW_TOKENS // text)
    rows = batch * -(-c.titles * c.passages // each)
    sizes = {"R": rows, "T": max(ROW_TOKENS, text), "C": round_up(each, 4), "r": REJECT}
    reject = jax.ShapeDtypeStruct((REJECT,), jnp.int32)
    options = {"sizes": sizes, "runs": runs, "reject": reject}
    planner.compile("evaluate, assess", steps.assess, *lm, cache, **options)
    _plan_answer(session, planner, text, runs)


def _plan_search(
    session: PlannedSession,
    planner: Planner,
    name: str,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    passages: int,
    *,
    beams: int,
    max_tokens: int,
    runs: dict[str, int],
    greedy: bool = False,
) -> None:
    """A search along the trie; most beams have ended after a dozen tokens."""
    base, mesh = session.base, session.mesh
    nodes = round_up(round(_NODES * passages), 64)
    whole = NamedSharding(mesh, PartitionSpec())
    first, tokens = (
        jax.ShapeDtypeStruct((size,), jnp.int32, sharding=whole) for size in (nodes + 1, nodes)
    )
    trie = TrieArrays(first, tokens, choose_gathers(min(passages, base.config.vocab_size)))
    starts, active = (jax.ShapeDtypeStruct((len(hidden),), dtype) for dtype in (jnp.int32, bool))
    starts, active = split_rows((starts, active), mesh)
    inputs = params, cache, hidden, trie, starts
    options = {"config": BeamConfig(beams), "max_tokens": max_tokens, "greedy": greedy}
    one = f"evaluate, one token of {name}"
    compile_paths(planner, one, base, *inputs, **options)
    stops = jax.ShapeDtypeStruct((nodes,), bool, sharding=whole) if name == "titles" else None
    options |= {"stops": stops, "active": active, "runs": runs}
    options["loop"] = one, min(max_tokens, _TURNS) - 1
    planner.compile(f"evaluate, search {name}", steps.search, base.model, *inputs, **options)


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
