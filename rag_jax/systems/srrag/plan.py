"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.data.batches import double_up, round_up
from rag_jax.data.packing import Microbatch
from rag_jax.decoding.generate import generate_batch
from rag_jax.decoding.prompts import prefill_batch
from rag_jax.decoding.sample import Sampling
from rag_jax.models import Pretrained
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    copy,
    describe_cache,
    describe_model,
    halve,
    list_lighter,
    list_wider,
    split_rows,
)
from rag_jax.planning.batches import Corpus, Drawn, Shape, StageBatches
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import compile_encoding, compile_training, name_shape
from rag_jax.planning.turns import compile_token
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.srrag import policy, session, steps
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import pack_examples, special_tokens
from rag_jax.systems.srrag.sources import count_slots
from rag_jax.systems.srrag.train import make_pairs

CONFIG = SRRAGConfig

PASSAGE = 160  # tokens, rounded up, of the longest: 100 words with their title
_CUE = 4  # `<EOK> Answer:`, and the end of the text after the answer


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""

    @cached_property
    def base(self) -> Pretrained:
        """The language model with room for the special tokens."""
        c = self.config.model
        config = self.load_language_model("model.name").config
        self.check_layer(config.num_layers)
        tokens = config.vocab_size + len(special_tokens(self.config.sources))
        padded = round_up(tokens, c.vocab_multiple)
        config = replace(config, vocab_size=padded, vocab_padding=padded - tokens)
        options = {"dtype": c.dtype, "int8": c.int8, "rules": self.choose_rules(config)}
        return describe_model(config, self.mesh, **options)

    @property
    def new_ids(self) -> list[int]:
        """The ids of the special tokens."""
        end = self.base.config.vocab_size - self.base.config.vocab_padding
        return list(range(end - len(special_tokens(self.config.sources)), end))


def plan(
    config: SRRAGConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any
) -> Planner:
    """Compiles the run's programs: of batches that were drawn all, of others at the largest shape.

    The largest shape is that of rows of the planned lengths.
    """
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.base.params, session.encoder.params)
    _plan_contexts(session, planner, drawn)
    searched = _count_searched(config)
    asked = {"contexts": drawn.corpus.trained, "evaluate": drawn.corpus.asked}
    reranked = {stage: count * searched for stage, count in asked.items()}
    reranker = compile_reranking(planner, config.retrieve.rerank, reranked)
    _plan_training(session, planner, drawn)
    planner.hold(session.base.params, session.encoder.params, *reranker)
    _plan_passes(session, planner, drawn.corpus)
    return planner


def _count_searched(config: SRRAGConfig) -> int:
    """The number of sources that are indexes."""
    return sum(source.kind == "search" for source in config.sources)


def list_remedies(config: SRRAGConfig, name: str) -> Iterator[tuple[str, SRRAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    stage = name.split(",")[0]
    if stage in ("stage1", "stage2") and "gradients" in name:
        yield from list_lighter(config, f"{stage}.microbatch_tokens")
    else:
        batch = next((path for part, path in _BATCHES.items() if part in name), None)
        if batch:
            yield halve(config, batch)
    yield from list_wider(config)


# Which setting a program's rows come from, by a part of its name.
_BATCHES = {
    "document": "verbalise.batch_size",
    "labels": "label.batch_size",
    "passages": "encoder.batch_size",
    "verbalis": "answer.batch_size",
    "answer": "answer.batch_size",
    "route": "answer.batch_size",
}


def _plan_contexts(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """Index, demonstrations, contexts and labels: the models as they were."""
    c, base, mesh = session.config, session.base, session.mesh
    compile_encoding(planner, drawn.stages["index"], session.encoder)
    _plan_documents(session, planner, drawn.corpus)
    prefix = describe_cache(base, mesh, 1, 64)
    for shape, runs in drawn.stages["labels"].runs.items():
        sizes = {"B": shape.rows, "T": shape.width, "P": round_up(c.answer.max_tokens, 8)}
        options = {"sizes": sizes, "runs": {"labels": runs}}
        inputs, name = (base.model, base.params, prefix), f"labels, score {name_shape(shape)}"
        planner.compile(name, steps.score_contexts, *inputs, **options)


def _plan_documents(session: PlannedSession, planner: Planner, corpus: Corpus) -> None:
    """GenRead's second round, after demonstrations that a batch shares and that it does not."""
    c, base, mesh = session.config, session.base, session.mesh
    lm, limit, count = (base.model, base.params), c.verbalise.max_tokens, c.verbalise.demonstrations
    examples = count * (QUESTION + limit + 16)
    pool, written = c.verbalise.pool, corpus.trained * c.contexts
    shared = {"B": 1, "T": round_up(examples, 64)}
    options = {"sizes": shared, "runs": {"contexts": c.contexts}, "describe": True}
    prefix = planner.compile("read demonstrations", prefill_batch, *lm, **options)
    with jax.set_mesh(mesh):
        few = double_up(count, count_data_rows())
    # Questions that are demonstrations themselves share the instruction alone with each other.
    own = {"B": min(few, c.verbalise.batch_size), "T": round_up(examples + QUESTION, 32)}
    batch = c.verbalise.batch_size
    for names, sizes, start, runs in (
        (
            ("write documents", "one token of a document"),
            {"B": batch, "T": QUESTION},
            prefix,
            {"demonstrations": -(-pool // batch), "contexts": -(-written // batch)},
        ),
        (
            ("second round of shown questions", "one token of the second round"),
            own,
            describe_cache(base, mesh, 1, 64),
            {"contexts": -(-pool // own["B"])},
        ),
    ):
        cache = describe_cache(base, mesh, *sizes.values(), start)
        one = compile_token(planner, names[1], base, base.params, cache, max_tokens=limit)
        options = {"sampling": Sampling(temperature=c.verbalise.temperature), "seed": 0}
        options |= {"max_tokens": limit, "stop_ids": (0,), "loop": (one, limit - 1), "runs": runs}
        planner.compile(names[0], generate_batch, *lm, start, sizes=sizes, **options)


def _plan_training(session: PlannedSession, planner: Planner, drawn: Drawn) -> None:
    """Both stages and the reference, in the batches that were drawn."""
    c, base, trainable = session.config, session.base, session.trainable
    held = base.params, session.encoder.params
    for stage, settings in (("stage1", c.stage1), ("stage2", c.stage2)):
        batches = drawn.stages[stage]
        make_arrays = partial(_make_arrays, batches)
        inputs = trainable, settings, session.losses, make_arrays
        compile_training(planner, batches, *inputs, *held)
    planner.hold(*held)
    batches = drawn.stages["reference"]
    for shape, runs in batches.runs.items():
        arrays = _pack_none(batches, shape)
        inputs = base.model, copy(base.params), split_rows(arrays, session.mesh)
        name = f"reference, score {name_shape(shape)}"
        options = {"rows": 2 * batches.packing.shapes[shape.kind].items}
        options["runs"] = {"reference": runs}
        planner.compile(name, steps.score_verbalisations, *inputs, **options)


def _make_arrays(batches: StageBatches, shape: Shape) -> dict[str, np.ndarray]:
    """What a training's loss takes of a microbatch."""
    arrays = _pack_none(batches, shape)
    if shape.kind == "rows":
        return arrays
    items = batches.packing.shapes[shape.kind].items
    return make_pairs(arrays, np.zeros((shape.rows, 2 * items), np.float32))


def _pack_none(batches: StageBatches, shape: Shape) -> dict[str, np.ndarray]:
    """The arrays of a microbatch of padding alone."""
    micro = Microbatch([], shape.rows, shape.width, shape.kind)
    return pack_examples([], batches.packing, micro, scale=1.0, reduction="mean")


def _plan_passes(session: PlannedSession, planner: Planner, corpus: Corpus) -> None:
    """The trained model's pass over questions, for the datastore and at test time."""
    c, base, mesh = session.config, session.base, session.mesh
    # The tuned parameters are kept beside those that they came from.
    params = copy(base.params)
    lm, rows, limit = (base.model, params), {"B": c.answer.batch_size}, c.verbalise.max_tokens
    knowledge = count_slots(PASSAGE, c.answer.passages, limit)
    asked = -(-corpus.asked // c.answer.batch_size)
    both = {"datastore": -(-corpus.trained // c.answer.batch_size), "evaluate": asked}
    searched = _count_searched(c)
    options = {"source_ids": tuple(session.new_ids[2:]), "layer": c.datastore.layer}
    options |= {"sizes": {**rows, "T": QUESTION}, "runs": both, "describe": True}
    routed = planner.compile("route", steps.route, *lm, **options)

    def compile_written(
        names: tuple[str, str], step: Any, slots: int, limit: int, *args: Any, **options: Any
    ) -> Any:
        """A program that writes at most `limit` tokens, and one turn of its loop."""
        name, turn = names
        cache = describe_cache(base, mesh, rows["B"], slots)
        one = compile_token(planner, turn, base, params, cache, max_tokens=limit)
        loop, options = (one, limit - 1), {**options, "max_tokens": limit, "stop_ids": (0,)}
        return planner.compile(name, step, *lm, *args, sizes=rows, loop=loop, **options)

    slots, names = QUESTION + 1, ("verbalise", "one token of a verbalisation")
    inputs = slots, limit, routed.cache
    written = compile_written(names, steps.verbalise, *inputs, runs=both, describe=True)[0]
    # Every question is answered from every source.
    from_searches = {stage: count * searched for stage, count in both.items()}
    options = {"sizes": {**rows, "T": knowledge}, "runs": from_searches, "describe": True}
    read = planner.compile("read for answers", steps.read, *lm, written, **options)
    slots, names = slots + limit + knowledge + _CUE, ("answer", "one token of an answer")
    cue = (0,) * (_CUE - 1)
    answered = {"evaluate": asked * len(c.sources)}
    inputs, options = (slots, c.answer.max_tokens, read), {"cue": cue, "runs": answered}
    compile_written(names, steps.answer, *inputs, **options)
    entries = corpus.trained
    keys = jax.ShapeDtypeStruct((entries, base.config.hidden_size), jnp.float32)
    labels = jax.ShapeDtypeStruct((entries,), jnp.int32)
    datastore = policy.Datastore(*split_rows((keys, labels), mesh), c.datastore.metric)
    options = {"k": c.datastore.k, "num_sources": len(c.sources), "sizes": rows}
    options["runs"] = {"evaluate": asked}
    planner.compile("vote", policy.vote, datastore, routed.key, **options)
