"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Mapping, Sequence
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
    copy,
    describe_cache,
    halve,
    list_lighter,
    list_wider,
    split_rows,
)
from rag_jax.planning.batches import Drawn, Shape, StageBatches
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import (
    compile_encoding,
    compile_rows,
    compile_training,
    name_shape,
)
from rag_jax.planning.turns import compile_token
from rag_jax.runtime.sharding import shardings_of
from rag_jax.systems.prag import session, steps
from rag_jax.systems.prag.batches import (
    PASSAGE_MARKS,
    count_documents,
    count_prompt,
    count_taught,
)
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.evaluate import METHODS, TRANSLATED
from rag_jax.systems.prag.loss import TERMS, make_document_loss, make_warm_up_loss
from rag_jax.systems.prag.train import make_optimizer
from rag_jax.systems.prag.translate import (
    AUGMENT,
    ENCODE,
    EVALUATE_TRANSLATED,
    TRAIN,
    TRANSLATE,
    WIDTH,
    make_training,
    read_states,
    translate_batch,
)
from rag_jax.systems.prag.translator import list_adapted
from rag_jax.training.bank import abstract_bank_state, take_bank_step
from rag_jax.training.trainable import set_passes

CONFIG = PRAGConfig

_WRITER = 220  # tokens of the request for a rewrite or for questions, with its example


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""

    def describe_bank(self, count: int) -> PyTree[jax.ShapeDtypeStruct]:
        """The adapters of `count` documents."""
        describe = lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)  # noqa: E731
        return split_rows(jax.tree.map(describe, self.adapter_shapes), self.mesh)


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
    if TRAIN in drawn.stages:
        _plan_translator(session, planner, drawn)
    _plan_answers(session, planner, drawn)
    return planner


def list_remedies(config: PRAGConfig, name: str) -> Iterator[tuple[str, PRAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    stage = name.split(",")[0]
    settings = {"encode": "encode.together", "retrieve": "retrieve.encoder.batch_size"}
    settings |= {"augment": "augment.batch_size", "evaluate": "answer.batch_size"}
    settings |= {ENCODE: "encode.together", TRAIN: "translator.batch_size"}
    settings |= {TRANSLATE: "answer.batch_size"}
    if stage in ("encode", ENCODE, TRAIN):
        yield from list_lighter(config, settings[stage])
    elif stage in settings:
        yield halve(config, settings[stage])
    yield from list_wider(config)


def _plan_writing(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """What a model writes about each document, a rewrite and questions, at the first attempt."""
    c, writer, corpus = session.config.augment, session.augmenter, drawn.corpus
    documents, taught = (count(session.config, corpus) for count in (count_documents, count_taught))
    params, width = copy(writer.params), _WRITER + int(corpus.lengths.text[-1])
    sizes = {"B": c.batch_size, "T": round_up(width, 32)}
    cache = describe_cache(writer, session.mesh, *sizes.values())
    planner.hold(params)
    inputs = planner, "augment, one token", writer, params, cache
    one = compile_token(*inputs, max_tokens=c.max_tokens)
    options = {"sampling": Sampling(temperature=c.temperature, top_k=c.top_k), "seed": 0}
    options |= {"max_tokens": c.max_tokens, "stop_ids": (0,), "loop": (one, c.max_tokens - 1)}
    texts, stages = bool(c.rewrites) + 1, {"augment": documents, AUGMENT: taught}
    batches = {stage: -(-count // c.batch_size) * texts for stage, count in stages.items()}
    options["runs"] = {stage: count for stage, count in batches.items() if count}
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
        options = {"shardings": shardings_of(state), "runs": {batches.stage: runs}}
        name = f"{batches.stage}, a step of {name_shape(shape)}"
        planner.compile(name, take_bank_step, *inputs, **options)


def _plan_translator(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """The adapters that the translator is trained on, its training, and the ones that it makes."""
    c, base, mesh = session.config, session.base, session.mesh
    _plan_banks(session, planner, drawn.stages[ENCODE])
    kernels = list_adapted(session.adapter_shapes)
    options = {"tuning": c.tuning, "translator": c.translator, "mesh": mesh, "seed": c.seed}
    loss, trainable = make_training(base, kernels, **options)

    def describe_states(rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, base.config.hidden_size), jnp.float32)

    def make_arrays(shape: Shape) -> dict[str, Any]:
        return {
            "states": describe_states(shape.rows),
            "tokens": jax.ShapeDtypeStruct((shape.rows, shape.width), jnp.int32),
            "mask": jax.ShapeDtypeStruct((shape.rows, shape.width), bool),
            "weight": jax.ShapeDtypeStruct((shape.rows,), jnp.float32),
            "adapters": session.describe_bank(shape.rows),
        }

    inputs = trainable, c.translator, {"documents": loss}, make_arrays, base.params
    compile_training(planner, drawn.stages[TRAIN], *inputs)
    planner.hold(base.params)
    batch, corpus = c.answer.batch_size, drawn.corpus
    numbers = {TRAIN: count_taught(c, corpus), TRANSLATE: count_documents(c, corpus)}
    runs = {stage: -(-number // batch) for stage, number in numbers.items()}
    title, passage = (int(getattr(corpus.lengths, kind)[-1]) for kind in ("title", "passage"))
    sizes = {"B": batch, "T": round_up(title + min(passage, c.model.max_text), WIDTH)}
    inputs, options = (base.model, base.params), {"sizes": sizes, "runs": runs}
    planner.compile("translate, read documents", read_states, *inputs, **options)
    states = split_rows(describe_states(batch), mesh)
    inputs, options = (trainable.abstract(), states), {"kernels": kernels}
    options["runs"] = {TRANSLATE: runs[TRANSLATE]}
    planner.compile("translate, make adapters", translate_batch, *inputs, **options)


def _plan_answers(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """The answers of all methods, by what their prompts have, with each question's adapters."""
    c, base, lengths = session.config, session.base, drawn.corpus.lengths
    batch, limit, docs = c.answer.batch_size, c.answer.max_tokens, c.retrieve.passages
    passage = min(int(lengths.text[-1]), c.model.max_text) + PASSAGE_MARKS
    pairs = c.augment.questions * (int(lengths.question[-1]) + int(lengths.answer[-1]))
    asked, batches = count_prompt(c) + QUESTION, -(-drawn.corpus.asked // batch)
    read = {"nothing": 0, "passages": passage}
    read["augmentations"] = (1 + c.augment.rewrites) * passage + pairs
    answered = {"evaluate": METHODS}
    if TRAIN in drawn.stages:
        answered[EVALUATE_TRANSLATED] = TRANSLATED
    for kind, tokens in read.items():
        counts = {stage: _count_methods(methods, kind) for stage, methods in answered.items()}
        runs = {stage: count * batches for stage, count in counts.items() if count}
        sizes = {"B": batch, "T": round_up(asked + docs * tokens, 32), "k": docs}
        cache = describe_cache(base, session.mesh, batch, sizes["T"])
        inputs = planner, f"evaluate, one token after {kind}", base, base.params, cache
        loop = compile_token(*inputs, max_tokens=limit), limit - 1
        options = {"scale": c.tuning.scale, "merge": c.answer.merge, "max_tokens": limit}
        options |= {"stop_ids": (0,), "sizes": sizes, "loop": loop, "runs": runs}
        inputs = base.model, base.params, session.describe_bank(batch * docs)
        planner.compile(f"evaluate, answer after {kind}", steps.answer_batch, *inputs, **options)


def _count_methods(methods: Mapping[str, tuple[str, str | None]], kind: str) -> int:
    """The number of methods whose prompts have this kind of text before the question."""
    return sum(read == kind for read, _ in methods.values())
