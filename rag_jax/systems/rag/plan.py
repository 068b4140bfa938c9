"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rag_jax.data.batches import round_up
from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache, write_branches
from rag_jax.losses import mix_documents
from rag_jax.models import Pretrained
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.nn.bart import BartConfig
from rag_jax.planning.abstract import (
    QUESTION,
    change,
    compile_update,
    copy,
    describe_cache,
    describe_model,
    halve,
)
from rag_jax.planning.planner import Planner
from rag_jax.retrieval.encode import embed_batch
from rag_jax.runtime.sharding import abstract_params, shardings_of
from rag_jax.systems.rag import infer, train
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Example
from rag_jax.systems.rag.pipeline import Session
from rag_jax.training.loop import compute_gradients, describe_state
from rag_jax.training.trainable import apply_tuned

CONFIG = RAGConfig


class PlannedSession(Session):
    """A session whose models are descriptions of arrays."""

    def load_model(self, name: str, *, dtype: Any = None) -> Pretrained:
        """A model without its weights and tokenizer."""
        return describe_model(find_sizes(name), self.mesh, dtype=dtype or jnp.float32)

    @property
    def models(self) -> list[Any]:
        """The parameters that a run has in memory whatever it does."""
        models = (self.generator, self.encoder, self.passage_encoder)
        return [model.params for model in models]


def plan(config: RAGConfig, devices: Sequence[jax.Device], **options: Any) -> Planner:
    """Compiles the run's programs at the largest shapes it has for rows of the planned lengths.

    Args:
        options: of `Planner`.
    """
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.models)
    _plan_encoding(session, planner)
    for joint in (False, True):
        _plan_training(session, planner, joint=joint)
    _plan_answers(session, planner)
    return planner


def list_remedies(config: RAGConfig, name: str) -> Iterator[tuple[str, RAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each.

    Args:
        name: of the program that does not fit.
    """
    if name.endswith("gradients of questions"):
        is_decoder = not isinstance(find_sizes(config.generator.name), BartConfig)
        if is_decoder and config.tuning.remat != "full":
            yield change(config, "tuning.remat", "full")
        yield halve(config, "train.microbatch_tokens")
    elif name == "embed passages":
        yield halve(config, "retriever.batch_size")
    elif not name.startswith(("frozen", "joint", "embed")):
        yield halve(config, "decode.batch_size")
    yield change(config, "mesh.model", 2 * max(config.mesh.model, 1))
    if config.tuning.mode == "full":
        yield change(config, "tuning.mode", "lora")


def _plan_encoding(session: PlannedSession, planner: Planner) -> None:
    """The index, and the questions that a training step asks it."""
    c, parts = session.config, session.mesh.shape["data"]
    width = round_up(c.retriever.max_length, 16)
    kinds = {
        "embed passages": (session.passage_encoder, c.retriever.batch_size * 16 // width, width),
        "embed questions": (session.encoder, c.train.batch_size, QUESTION),
    }
    for name, (encoder, rows, width) in kinds.items():
        rows = round_up(rows, parts)
        planner.compile(
            name,
            embed_batch,
            encoder.model,
            encoder.params,
            planner.rows((rows, min(width, encoder.config.max_length)), jnp.int32),
            planner.rows((rows,), jnp.int32),
        )


def _plan_training(session: PlannedSession, planner: Planner, *, joint: bool) -> None:
    """A training step, in microbatches of the longest questions."""
    c, generator, encoder = session.config, session.generator, session.encoder
    name, docs = "joint" if joint else "frozen", c.passages
    trained = train.describe_trainable(session, joint=joint)
    optimizer = train.make_tuner(session, 1)
    state = describe_state(trained, optimizer)
    total = copy(trained)  # gradients lie where their parameters do
    frozen = {"generator": None if c.tuning.mode == "full" else generator.params}
    if not joint:
        frozen["query"] = encoder.params
    examples = [Example([[0] * c.generator.max_length] * docs)] * c.train.batch_size
    with jax.set_mesh(session.mesh):
        _, rows, width = train.group_examples(
            examples,
            docs=docs,
            budget=c.train.microbatch_tokens,
            limit=generator.config.max_length,
        )[0]
    answer = round_up(c.decode.max_tokens + 1, 8)
    query = min(QUESTION, encoder.config.max_length)
    batch = {
        "tokens": planner.rows((rows * docs, width), jnp.int32),
        "mask": planner.rows((rows * docs, width), bool),
        "targets": planner.rows((rows, answer), jnp.int32),
        "target_mask": planner.rows((rows, answer), bool),
        "weight": planner.rows((rows,), jnp.float32),
        "query": planner.rows((rows, query), jnp.int32),
        "query_mask": planner.rows((rows, query), bool),
        "passages": planner.rows((rows, docs, encoder.config.embedding_size), jnp.float32),
    }
    planner.hold(session.models, state, total)
    planner.compile(
        f"{name}, gradients of questions",
        compute_gradients,
        train.make_loss(session, joint=joint),
        state.params,
        frozen,
        batch,
        places=shardings_of(state.params),
    )
    planner.hold(session.models, state)
    compile_update(planner, f"{name}, ", optimizer, state, total)


def _plan_answers(session: PlannedSession, planner: Planner) -> None:
    """Every way of answering, with the trained models; both trainings' are kept."""
    c, model, docs = session.config, session.generator.model, session.config.passages
    decode, limit = c.decode, session.generator.config.max_length
    trained = train.describe_trainable(session, joint=True)
    join = partial(apply_tuned, c.tuning, dtype=session.dtype)
    params = jax.eval_shape(join, trained["generator"], session.generator.params)
    params = abstract_params(params, session.mesh, train.find_rules(session)["generator"])
    planner.hold(session.models, copy(params), params, trained["query"])

    rows, width = decode.batch_size * docs, min(round_up(c.generator.max_length, 16), limit)
    scores = planner.rows((decode.batch_size, docs), jnp.float32)
    cache, hidden = planner.compile(
        "read passages",
        infer.read,
        model,
        params,
        planner.rows((rows, width), jnp.int32),
        planner.rows((rows, width), bool),
    )
    settings = {
        "max_tokens": decode.max_tokens,
        "stop_ids": (0,),
        "search": BeamConfig(decode.beams, decode.length_penalty, decode.early_stopping),
    }
    # A forced end comes after the last token.
    turns = decode.max_tokens - (getattr(model.config, "forced_eos_id", None) is None)
    read = model, params, cache, hidden
    one = "one token of a question's beams"
    _compile_turn(session, planner, one, params, cache, scores)
    planner.compile(
        "write with RAG-Token", infer.write_token, *read, scores, **settings, loop=(one, turns - 1)
    )
    one = "one token of a passage's beams"
    _compile_turn(session, planner, one, params, cache, None)
    found = planner.compile(
        "propose answers", infer.propose, *read, scores, **settings, loop=(one, turns - 1)
    )
    width = min(round_up(found.tokens.shape[2], 8), found.tokens.shape[2])

    def score(name: str, count: int, **loop: Any) -> None:
        answers = (
            planner.rows((decode.batch_size, count, width), jnp.int32),
            planner.rows((decode.batch_size, count), jnp.int32),
            planner.rows((decode.batch_size, docs, count), jnp.float32),
        )
        planner.compile(name, infer.score, *read, *answers, chunk=decode.beams, **loop)

    # Every passage has its own beams' already, and scores as many of each other passage's.
    one = "score answers of one passage"
    score(one, decode.beams)
    score("score answers", docs * decode.beams, loop=(one, max(0, docs - 2)))


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _write_beams(model, params, cache: Cache, tokens, doc_scores):
    """What `search_beams` does in one turn, but for its keeping of beams."""
    (rows, beams), slots = tokens.shape, cache.real.shape[1]
    seen = jnp.ones((rows, beams, slots), bool)
    slot = slots - beams
    output, cache = write_branches(model, params, cache, tokens, seen, slot=slot, depth=0, length=1)
    logits = model.apply({"params": params}, output.hidden, method="logits")
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if doc_scores is not None:
        logprobs = mix_documents(doc_scores, logprobs.reshape(*doc_scores.shape, beams, -1))
    return jax.lax.top_k(logprobs.reshape(len(logprobs), -1), 2 * beams), cache


def _compile_turn(
    session: PlannedSession, planner: Planner, name: str, params: Any, read: Cache, doc_scores: Any
) -> None:
    """Plans one turn of a beam search, at its longest.

    Args:
        read: the cache of what the beams go on from.
    """
    c, start = session.config.decode, 0
    if session.is_seq2seq:
        read, start = read.prefix, read.real.shape[1]
    rows = session.config.passages * c.batch_size
    cache = describe_cache(planner, session.generator, rows, start + c.beams * c.max_tokens, read)
    tokens = planner.rows((rows, c.beams), jnp.int32)
    planner.compile(name, _write_beams, session.generator.model, params, cache, tokens, doc_scores)
