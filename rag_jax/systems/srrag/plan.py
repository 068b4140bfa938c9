"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.config import TrainConfig
from rag_jax.data.batches import double_up, round_up
from rag_jax.decoding.prompts import prefill_batch
from rag_jax.decoding.sample import Sampling, generate_batch
from rag_jax.models import Pretrained
from rag_jax.planning.abstract import (
    QUESTION,
    AbstractModels,
    change,
    copy,
    describe_cache,
    describe_model,
    halve,
    list_wider,
    split_rows,
)
from rag_jax.planning.planner import Planner
from rag_jax.planning.training import compile_training
from rag_jax.planning.turns import compile_token
from rag_jax.retrieval.encode import embed_batch, plan_batches
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.srrag import policy, session, steps
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Example, pack_examples, plan_examples, special_tokens
from rag_jax.systems.srrag.sources import count_slots
from rag_jax.systems.srrag.train import make_pairs
from rag_jax.training.rows import Row

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


def plan(config: SRRAGConfig, devices: Sequence[jax.Device], **options: Any) -> Planner:
    """Compiles the run's programs at the largest shapes it has for rows of the planned lengths."""
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.base.params, session.encoder.params)
    _plan_contexts(session, planner)
    _plan_training(session, planner)
    planner.hold(session.base.params, session.encoder.params)
    _plan_passes(session, planner)
    return planner


def list_remedies(config: SRRAGConfig, name: str) -> Iterator[tuple[str, SRRAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    if name.startswith("stage"):
        if config.tuning.remat != "full":
            yield change(config, "tuning.remat", "full")
        stage = "stage1" if name.startswith("stage 1") else "stage2"
        yield halve(config, f"{stage}.microbatch_tokens")
    else:
        batch = next((path for part, path in _BATCHES.items() if part in name), None)
        if batch:
            yield halve(config, batch)
    yield from list_wider(config)


# Which setting a program's rows come from, by a part of its name.
_BATCHES = {
    "document": "verbalise.batch_size",
    "score contexts": "label.batch_size",
    "passages": "encoder.batch_size",
    "verbalis": "answer.batch_size",
    "answer": "answer.batch_size",
    "route": "answer.batch_size",
}


def _plan_contexts(session: PlannedSession, planner: Planner) -> None:
    """Index, demonstrations, contexts and labels: the models as they were."""
    c, base, encoder, mesh = session.config, session.base, session.encoder, session.mesh
    lm = base.model, base.params
    lengths = [c.encoder.max_length] * c.encoder.batch_size
    with jax.set_mesh(mesh):
        _, (rows, width) = next(plan_batches(lengths, c.encoder.batch_size, lengths[:1]))
    passage = {"B": rows, "T": width}
    planner.compile("embed passages", embed_batch, encoder.model, encoder.params, sizes=passage)
    _plan_documents(session, planner)
    sizes = {
        "B": c.label.batch_size,
        "T": QUESTION + max(PASSAGE, c.verbalise.max_tokens) + 32,
        "P": round_up(c.answer.max_tokens, 8),
    }
    prefix = describe_cache(base, mesh, 1, 64)
    planner.compile("score contexts", steps.score_contexts, *lm, prefix, sizes=sizes)


def _plan_documents(session: PlannedSession, planner: Planner) -> None:
    """GenRead's second round, after demonstrations that a batch shares and that it does not."""
    c, base, mesh = session.config, session.base, session.mesh
    lm, limit, count = (base.model, base.params), c.verbalise.max_tokens, c.verbalise.demonstrations
    examples = count * (QUESTION + limit + 16)
    shared = {"B": 1, "T": round_up(examples, 64)}
    prefix = planner.compile("read demonstrations", prefill_batch, *lm, sizes=shared)
    with jax.set_mesh(mesh):
        few = double_up(count, count_data_rows())
    # Questions that are demonstrations themselves share the instruction alone with each other.
    own = {"B": min(few, c.verbalise.batch_size), "T": round_up(examples + QUESTION, 32)}
    for names, sizes, start in (
        (
            ("write documents", "one token of a document"),
            {"B": c.verbalise.batch_size, "T": QUESTION},
            prefix,
        ),
        (
            ("second round of shown questions", "one token of the second round"),
            own,
            describe_cache(base, mesh, 1, 64),
        ),
    ):
        cache = describe_cache(base, mesh, *sizes.values(), start)
        one = compile_token(planner, names[1], base, base.params, cache, max_tokens=limit)
        options = {"sampling": Sampling(temperature=c.verbalise.temperature), "seed": 0}
        options |= {"max_tokens": limit, "stop_ids": (0,), "loop": (one, limit - 1)}
        planner.compile(names[0], generate_batch, *lm, start, sizes=sizes, **options)


def _plan_training(session: PlannedSession, planner: Planner) -> None:
    """Both stages and the reference, in microbatches of the longest rows."""
    c, base, trainable = session.config, session.base, session.trainable
    rows, pairs = session.losses["rows"], session.losses["pairs"]
    searched, verbalised, pair = _make_examples(c)
    with jax.set_mesh(session.mesh):
        of_searched, of_verbalised = (_pack(base, e, c.stage1) for e in (searched, verbalised))
        of_pairs = _pack(base, pair, c.stage2)
    reference = np.zeros((len(of_pairs["tokens"]), 2), np.float32)
    microbatches = {
        "stage 1, gradients of searched rows": (rows, of_searched),
        "stage 1, gradients of verbalised rows": (rows, of_verbalised),
        "stage 2, gradients of pairs": (pairs, make_pairs(of_pairs, reference)),
    }
    held = base.params, session.encoder.params
    compile_training(planner, "", trainable, c.stage1, microbatches, *held)
    planner.hold(*held)
    inputs = base.model, copy(base.params), split_rows(of_pairs, session.mesh)
    name, rows = "score pairs under the reference", reference.shape[1]
    planner.compile(name, steps.score_verbalisations, *inputs, rows=rows)


def _make_examples(c: SRRAGConfig) -> tuple[Example, Example, Example]:
    """The longest searched row, verbalised row, and pair of verbalised rows."""
    start = QUESTION + 1

    def make_row(knowledge: int, spans: dict[str, tuple[int, int]]) -> Row:
        answer = start + knowledge + _CUE - 1
        end = answer + c.answer.max_tokens + 1
        return Row("", [0] * end, {"source": (QUESTION, start), **spans, "answer": (answer, end)})

    searched = make_row(c.contexts * PASSAGE, {})
    limit = c.verbalise.max_tokens
    verbalised = make_row(limit, {"verbalisation": (start, start + limit + 1)})
    pair = Example(0, verbalised, verbalised)
    return Example(1, searched, None), Example(0, verbalised, None), pair


def _pack(base: Pretrained, example: Example, settings: TrainConfig) -> dict[str, np.ndarray]:
    """A microbatch of equal examples, as many as it holds."""
    examples = [example] * settings.batch_size
    _, packing = plan_examples(examples, settings, base.config, seed=0)
    micro = packing.group(range(len(examples)))[0]
    return pack_examples(examples, packing, micro, scale=1.0, reduction="mean")


def _plan_passes(session: PlannedSession, planner: Planner) -> None:
    """The trained model's pass over questions, for the datastore and at test time."""
    c, base, mesh = session.config, session.base, session.mesh
    # The tuned parameters are kept beside those that they came from.
    params = copy(base.params)
    lm, rows, limit = (base.model, params), {"B": c.answer.batch_size}, c.verbalise.max_tokens
    knowledge = count_slots(PASSAGE, c.answer.passages, limit)
    options = {"source_ids": tuple(session.new_ids[2:]), "layer": c.datastore.layer}
    routed = planner.compile("route", steps.route, *lm, sizes={**rows, "T": QUESTION}, **options)

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
    written = compile_written(names, steps.verbalise, slots, limit, routed.cache)[0]
    sizes = {**rows, "T": knowledge}
    read = planner.compile("read for answers", steps.read, *lm, written, sizes=sizes)
    slots, names = slots + limit + knowledge + _CUE, ("answer", "one token of an answer")
    cue = (0,) * (_CUE - 1)
    compile_written(names, steps.answer, slots, c.answer.max_tokens, read, cue=cue)
    entries = c.train_questions or c.world.train
    keys = jax.ShapeDtypeStruct((entries, base.config.hidden_size), jnp.float32)
    labels = jax.ShapeDtypeStruct((entries,), jnp.int32)
    datastore = policy.Datastore(*split_rows((keys, labels), mesh), c.datastore.metric)
    options = {"k": c.datastore.k, "num_sources": len(c.sources), "sizes": rows}
    planner.compile("vote", policy.vote, datastore, routed.key, **options)
