"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rag_jax.data.batches import round_up
from rag_jax.decoding.generate import generate_batch
from rag_jax.decoding.sample import Sampling
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    change,
    copy,
    describe_cache,
    halve,
    split_rows,
)
from rag_jax.planning.batches import Drawn, StageBatches
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import compile_encoding, compile_rows, name_shape
from rag_jax.planning.turns import compile_token
from rag_jax.runtime.sharding import shardings_of
from rag_jax.systems.prag import session, steps
from rag_jax.systems.prag.batches import PASSAGE_MARKS, count_prompt
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.loss import TERMS, make_document_loss, make_warm_up_loss
from rag_jax.systems.prag.train import make_optimizer
from rag_jax.training.bank import abstract_bank_state, take_bank_step
from rag_jax.training.trainable import init_trained, set_passes

CONFIG = PRAGConfig

_WRITER = 220  # tokens of the request for a rewrite or for questions, with its example


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""

    def describe_bank(self, count: int) -> PyTree[jax.ShapeDtypeStruct]:
        """The adapters of `count` documents."""
        c = self.config
        one = jax.eval_shape(partial(init_trained, c.tuning, seed=c.seed), self.base.params)
        bank = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), one)
        return split_rows(bank, self.mesh)


def plan(
    config: PRAGConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any
) -> Planner:
    """Compiles the run's programs: of trainings all, of others at the largest shape."""
    session = PlannedSession(config, devices)
    planner, c, base = Planner(session.mesh, **options), config, session.base
    if "retrieve" in drawn.stages:
        planner.hold(session.encoder.params)
        compile_encoding(planner, drawn.stages["retrieve"], session.encoder)
    compile_reranking(planner, c.retrieve.rerank, {"retrieve": drawn.corpus.asked})
    if c.augment.by == "model":
        _plan_writing(session, planner, drawn)
    if "warm_up" in drawn.stages:
        trainable = session.trainable
        loss = make_warm_up_loss(set_passes(base.model, c.tuning), trainable)
        batches = drawn.stages["warm_up"]
        compile_rows(planner, batches, trainable, c.warm_up, loss, TERMS, base.params)
    planner.hold(base.params)
    _plan_banks(session, planner, drawn.stages["encode"])
    _plan_answers(session, planner, drawn)
    return planner


def list_remedies(config: PRAGConfig, name: str) -> Iterator[tuple[str, PRAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    stage = name.split(",")[0]
    settings = {"encode": "encode.together", "retrieve": "retrieve.encoder.batch_size"}
    settings |= {"augment": "augment.batch_size", "evaluate": "answer.batch_size"}
    if stage == "encode" and config.tuning.remat != "full":
        yield change(config, "tuning.remat", "full")
    if stage in settings and settings[stage].count(".") == 1:
        yield halve(config, settings[stage])
    yield change(config, "mesh.model", 2 * max(config.mesh.model, 1))


def _plan_writing(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """What a model writes about each document, a rewrite and questions, at the first attempt."""
    c, writer, corpus = session.config.augment, session.augmenter, drawn.corpus
    documents = min(corpus.passages, corpus.asked * session.config.retrieve.passages)
    params, width = copy(writer.params), _WRITER + int(corpus.lengths.text[-1])
    sizes = {"B": c.batch_size, "T": round_up(width, 32)}
    cache = describe_cache(writer, session.mesh, *sizes.values())
    planner.hold(params)
    inputs = planner, "augment, one token", writer, params, cache
    one = compile_token(*inputs, max_tokens=c.max_tokens)
    options = {"sampling": Sampling(temperature=c.temperature, top_k=c.top_k), "seed": 0}
    options |= {"max_tokens": c.max_tokens, "stop_ids": (0,), "loop": (one, c.max_tokens - 1)}
    options["runs"] = {"augment": -(-documents // c.batch_size) * (bool(c.rewrites) + 1)}
    start = describe_cache(writer, session.mesh, 1, 64)
    inputs = writer.model, params, start
    planner.compile("augment, write", generate_batch, *inputs, sizes=sizes, **options)


def _plan_banks(session: PlannedSession, planner: Planner, batches: StageBatches) -> None:
    """A step of a group of documents, at every width."""
    c, base = session.config, session.base
    loss = make_document_loss(set_passes(base.model, c.tuning), session.trainable)
    optimizer = make_optimizer(c.encode)
    for shape, runs in batches.runs.items():
        state = abstract_bank_state(session.describe_bank(shape.rows), optimizer)
        tokens = jax.ShapeDtypeStruct((shape.rows, shape.width), jnp.int32)
        mask = jax.ShapeDtypeStruct((shape.rows, shape.width), bool)
        arrays = split_rows({"tokens": tokens, "mask": mask}, session.mesh)
        inputs = loss, optimizer, state, base.params, arrays
        options = {"shardings": shardings_of(state), "runs": {"encode": runs}}
        name = f"encode, a step of {name_shape(shape)}"
        planner.compile(name, take_bank_step, *inputs, **options)


def _plan_answers(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """Answers by the parameters alone, and after passages with each question's adapters."""
    c, base, lengths = session.config, session.base, drawn.corpus.lengths
    batch, limit, docs = c.answer.batch_size, c.answer.max_tokens, c.retrieve.passages
    passage = min(int(lengths.text[-1]), c.model.max_text) + PASSAGE_MARKS
    widths = {"without passages": count_prompt(c) + QUESTION}
    widths["after passages"] = widths["without passages"] + docs * passage
    runs = {"evaluate": -(-drawn.corpus.asked // batch)}
    for name, width in widths.items():
        sizes = {"B": batch, "T": round_up(width, 32), "k": docs}
        cache = describe_cache(base, session.mesh, batch, sizes["T"])
        inputs = planner, f"evaluate, one token {name}", base, base.params, cache
        loop = compile_token(*inputs, max_tokens=limit), limit - 1
        options = {"scale": c.tuning.scale, "merge": c.answer.merge, "max_tokens": limit}
        options |= {"stop_ids": (0,), "sizes": sizes, "loop": loop, "runs": runs}
        inputs = base.model, base.params, session.describe_bank(batch * docs)
        planner.compile(f"evaluate, answer {name}", steps.answer_batch, *inputs, **options)
