"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rag_jax.data.batches import round_up
from rag_jax.data.packing import Microbatch
from rag_jax.decoding.beams import BeamConfig
from rag_jax.planning.abstract import (
    AbstractModels,
    copy,
    halve,
    list_lighter,
    list_wider,
    split_rows,
)
from rag_jax.planning.batches import Corpus, Drawn, Shape
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import compile_encoding, compile_training
from rag_jax.planning.turns import compile_beams
from rag_jax.retrieval.encode import embed_batch
from rag_jax.runtime.sharding import abstract_params, place_like
from rag_jax.systems.rag import session, steps
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Example, pack_queries

CONFIG = RAGConfig


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""

    @property
    def models(self) -> list[Any]:
        """The parameters that a run has in memory whatever it does."""
        return [m.params for m in (self.generator, self.encoder, self.passage_encoder)]


def plan(config: RAGConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any) -> Planner:
    """Compiles the run's programs: of batches that were drawn all, of others at the largest shape.

    The ablations' training needs no more than that with the retriever as it was.
    """
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.models)
    compile_encoding(planner, drawn.stages["index"], session.passage_encoder)
    for joint in (False, True) if config.train.generator else (True,):
        _plan_training(session, planner, drawn, joint=joint)
    _plan_answers(session, planner, drawn.corpus)
    return planner


def list_remedies(config: RAGConfig, name: str) -> Iterator[tuple[str, RAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    if "gradients of questions" in name:
        yield from list_lighter(config, "train.microbatch_tokens")
    elif name.startswith("index, embed"):
        yield halve(config, "retriever.batch_size")
    elif not name.startswith(("frozen", "joint")):
        yield halve(config, "decode.batch_size")
    yield from list_wider(config)


def _plan_training(session: PlannedSession, planner: Planner, drawn: Drawn, *, joint: bool) -> None:
    """A training in the batches that were drawn, and the search for each step's passages."""
    c, encoder = session.config, session.encoder
    batches = drawn.stages["joint" if joint else "frozen"]
    docs = min(c.passages, drawn.corpus.passages)
    longest = round_up(int(drawn.corpus.lengths.query[-1]), 16)
    width = min(longest, c.retriever.max_length, encoder.config.max_length)
    rows = round_up(c.train.batch_size, session.mesh.shape["data"])
    inputs, sizes = (encoder.model, encoder.params), {"B": rows, "T": width}
    options = {"sizes": sizes, "runs": {batches.stage: batches.steps}}
    name = f"{batches.stage}, embed questions {rows} x {width}"
    planner.compile(name, embed_batch, *inputs, **options)
    queries = [[0] * width]
    embeddings = np.zeros((1, docs, encoder.model.embedding_size), np.float32)

    def make_arrays(shape: Shape) -> dict[str, np.ndarray]:
        found = partial(pack_queries, queries, embeddings, width=width)
        example = Example([[0]] * docs, [0])
        micro = Microbatch([[0]], shape.rows, shape.width)
        return batches.packing.pack_micro([example], micro, found, scale=1.0)

    trainable, loss = session.make_trainable(joint=joint), session.make_loss(joint=joint)
    losses, held = {"questions": loss}, session.models
    compile_training(planner, batches, trainable, c.train, losses, make_arrays, held)


def _hold_trained(session: PlannedSession, planner: Planner, *held: PyTree) -> PyTree:
    """The trained generator; its parameters stay in memory, as do the other training's."""
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
    trained = (copy(params), params) if session.config.train.generator else ()
    planner.hold(session.models, *trained, query, *held)
    return params


def _plan_answers(session: PlannedSession, planner: Planner, corpus: Corpus) -> None:
    """Every way of answering, with the trained models."""
    c, generator = session.config, session.generator
    reranker = compile_reranking(planner, c.retrieve.rerank, {"evaluate": corpus.asked})
    params = _hold_trained(session, planner, *reranker)
    docs = min(c.passages_read, corpus.passages)
    decode, limit = c.decode, generator.config.max_length
    runs = {"evaluate": -(-corpus.asked // decode.batch_size)}
    width = min(round_up(c.generator.max_length, 32), limit)
    inputs = {"B": decode.batch_size * docs, "T": width}
    lm = generator.model, params
    options = {"sizes": inputs, "runs": runs, "prefix": None, "describe": True}
    cache, hidden = planner.compile("read passages", steps.read, *lm, **options)
    settings = {
        "max_tokens": decode.max_tokens,
        "stop_ids": (0,),
        "config": BeamConfig(decode.beams, decode.length_penalty, decode.early_stopping),
    }
    # A forced end comes after the last token.
    turns = decode.max_tokens - (getattr(generator.config, "forced_eos_id", None) is None)
    scores = jax.ShapeDtypeStruct((decode.batch_size, docs), jnp.float32)
    scores, read = split_rows(scores, session.mesh), (cache, hidden)

    def compile_searched(
        name: str, step: Any, one: str, doc_scores: Any, *, describe: bool = False
    ) -> Any:
        """A program that searches beams, and one turn of its loop."""
        one = compile_beams(planner, one, generator, params, *read, doc_scores, **settings)
        options = {"loop": (one, turns - 1), "runs": runs, "describe": describe, **settings}
        return planner.compile(name, step, *lm, *read, scores, **options)

    one = "one token of a question's beams"
    compile_searched("write with RAG-Token", steps.write_token, one, scores)
    one = "one token of a passage's beams"
    found = compile_searched("propose answers", steps.propose, one, None, describe=True)
    width = min(round_up(found.tokens.shape[2], 8), found.tokens.shape[2])

    def score(name: str, count: int, **loop: Any) -> None:
        sizes = {"B": decode.batch_size, "K": docs, "C": count, "T": width}
        known = jax.ShapeDtypeStruct((decode.batch_size, docs, count), jnp.float32)
        options = {"known": split_rows(known, session.mesh), "chunk": decode.beams, **loop}
        planner.compile(name, steps.score, *lm, *read, sizes=sizes, **options)

    # Every passage has its own beams' already, and scores as many of each other passage's.
    one = "score answers of one passage"
    score(one, decode.beams)
    score("score answers", docs * decode.beams, loop=(one, max(0, docs - 2)), runs=runs)
