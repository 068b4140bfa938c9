"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.decoding.beams import BeamConfig
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.nn.bart import BartConfig
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    change,
    copy,
    halve,
    list_wider,
    split_rows,
)
from rag_jax.planning.planner import Planner
from rag_jax.planning.training import compile_training
from rag_jax.planning.turns import compile_beams
from rag_jax.retrieval.encode import embed_batch, plan_batches
from rag_jax.runtime.sharding import abstract_params, place_like
from rag_jax.systems.rag import session, steps
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Example, pack_queries
from rag_jax.systems.rag.train import plan_questions
from rag_jax.training.rows import list_costs

CONFIG = RAGConfig


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""

    @property
    def models(self) -> list[Any]:
        """The parameters that a run has in memory whatever it does."""
        return [m.params for m in (self.generator, self.encoder, self.passage_encoder)]


def plan(config: RAGConfig, devices: Sequence[jax.Device], **options: Any) -> Planner:
    """Compiles the run's programs at the largest shapes it has for rows of the planned lengths.

    The ablations' training needs no more than that with the retriever as it was.
    """
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.models)
    _plan_encoding(session, planner)
    for joint in (False, True) if config.train.generator else (True,):
        _plan_training(session, planner, joint=joint)
    _plan_answers(session, planner)
    return planner


def list_remedies(config: RAGConfig, name: str) -> Iterator[tuple[str, RAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    if name.endswith("gradients of questions"):
        is_decoder = not isinstance(find_sizes(config.generator.name), BartConfig)
        if is_decoder and config.tuning.remat != "full":
            yield change(config, "tuning.remat", "full")
        yield halve(config, "train.microbatch_tokens")
    elif name == "embed passages":
        yield halve(config, "retriever.batch_size")
    elif not name.startswith(("frozen", "joint", "embed")):
        yield halve(config, "decode.batch_size")
    yield from list_wider(config)


def _plan_encoding(session: PlannedSession, planner: Planner) -> None:
    """The index, and the questions that a training step asks it."""
    c, encoder, parts = session.config, session.passage_encoder, session.mesh.shape["data"]
    width = min(c.retriever.max_length, encoder.config.max_length)
    lengths = [width] * c.retriever.batch_size
    with jax.set_mesh(session.mesh):
        _, (rows, width) = next(plan_batches(lengths, c.retriever.batch_size, lengths[:1]))
    passage = {"B": rows, "T": width}
    planner.compile("embed passages", embed_batch, encoder.model, encoder.params, sizes=passage)
    encoder = session.encoder
    width = min(QUESTION, encoder.config.max_length)
    question = {"B": round_up(c.train.batch_size, parts), "T": width}
    planner.compile("embed questions", embed_batch, encoder.model, encoder.params, sizes=question)


def _plan_training(session: PlannedSession, planner: Planner, *, joint: bool) -> None:
    """A training step, in microbatches of the longest questions."""
    c, encoder = session.config, session.encoder.config
    stage = "joint, " if joint else "frozen, "
    count, docs, generator = c.train.batch_size, c.passages, session.generator
    example = Example([[0] * c.generator.max_length] * docs, [0] * (c.decode.max_tokens + 1))
    width = min(QUESTION, encoder.max_length)
    queries = [[0] * width] * count
    embeddings = np.zeros((count, docs, encoder.embedding_size), np.float32)
    plan = BatchPlan([0] * count, batch_size=count, seed=c.seed)
    limits = {"max_length": c.generator.max_length, "answer": c.decode.max_tokens + 1}
    with jax.set_mesh(session.mesh):
        costs = list_costs(plan, c.train, generator.config)
        packing = plan_questions([[example] * count], generator.model, **limits, **costs)
        found = partial(pack_queries, queries, embeddings, width=width)
        _, arrays = packing.pack([example] * count, found)[0]
    microbatches = {f"{stage}gradients of questions": (session.make_loss(joint=joint), arrays)}
    trainable = session.make_trainable(joint=joint)
    compile_training(planner, stage, trainable, c.train, microbatches, session.models)


def _plan_answers(session: PlannedSession, planner: Planner) -> None:
    """Every way of answering, with the trained models; both trainings' are kept."""
    c, generator, docs = session.config, session.generator, session.config.passages_read
    decode, limit = c.decode, generator.config.max_length
    trainable = session.make_trainable(joint=True)
    merged = jax.eval_shape(trainable.merge, trainable.abstract(), trainable.base)
    params, query = (
        place_like(
            abstract_params({name: merged[name]}, session.mesh, trainable.rules)[name],
            trainable.base[name],
        )
        for name in ("generator", "query")
    )
    # Without a trained generator there is only the one that was loaded.
    trained = (copy(params), params) if c.train.generator else ()
    planner.hold(session.models, *trained, query)

    width = min(round_up(c.generator.max_length, 32), limit)
    inputs = {"B": decode.batch_size * docs, "T": width}
    lm = generator.model, params
    cache, hidden = planner.compile("read passages", steps.read, *lm, prefix=None, sizes=inputs)
    settings = {
        "max_tokens": decode.max_tokens,
        "stop_ids": (0,),
        "config": BeamConfig(decode.beams, decode.length_penalty, decode.early_stopping),
    }
    # A forced end comes after the last token.
    turns = decode.max_tokens - (getattr(generator.config, "forced_eos_id", None) is None)
    scores = jax.ShapeDtypeStruct((decode.batch_size, docs), jnp.float32)
    scores, read = split_rows(scores, session.mesh), (cache, hidden)

    def compile_searched(name: str, step: Any, one: str, doc_scores: Any) -> Any:
        """A program that searches beams, and one turn of its loop."""
        one = compile_beams(planner, one, generator, params, *read, doc_scores, **settings)
        return planner.compile(name, step, *lm, *read, scores, loop=(one, turns - 1), **settings)

    one = "one token of a question's beams"
    compile_searched("write with RAG-Token", steps.write_token, one, scores)
    one = "one token of a passage's beams"
    found = compile_searched("propose answers", steps.propose, one, None)
    width = min(round_up(found.tokens.shape[2], 8), found.tokens.shape[2])

    def score(name: str, count: int, **loop: Any) -> None:
        sizes = {"B": decode.batch_size, "K": docs, "C": count, "T": width}
        known = jax.ShapeDtypeStruct((decode.batch_size, docs, count), jnp.float32)
        options = {"known": split_rows(known, session.mesh), "chunk": decode.beams, **loop}
        planner.compile(name, steps.score, *lm, *read, sizes=sizes, **options)

    # Every passage has its own beams' already, and scores as many of each other passage's.
    one = "score answers of one passage"
    score(one, decode.beams)
    score("score answers", docs * decode.beams, loop=(one, max(0, docs - 2)))
