"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from rag_jax.data.batches import round_up
from rag_jax.decoding.prompts import generate_batch, prefill_batch
from rag_jax.decoding.sample import Sampling
from rag_jax.models import Pretrained
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.planning.abstract import (
    QUESTION,
    change,
    compile_token,
    compile_update,
    copy,
    describe_cache,
    describe_model,
    halve,
)
from rag_jax.planning.planner import Planner
from rag_jax.retrieval.encode import embed_batch
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import shardings_of
from rag_jax.systems.srrag import policy, steps, tune
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.contexts import score_batch
from rag_jax.systems.srrag.data import TERMS, special_tokens
from rag_jax.systems.srrag.loss import sequence_logprobs
from rag_jax.systems.srrag.pipeline import Session
from rag_jax.training.loop import compute_gradients, describe_state

CONFIG = SRRAGConfig

PASSAGE = 160  # tokens, rounded up, of the longest: 100 words with their title
_CUE = 4  # `<EOK> Answer:`, and the end of the text behind the answer


class PlannedSession(Session):
    """A session whose models are descriptions of arrays."""

    @cached_property
    def base(self) -> Pretrained:
        """The language model with room for the special tokens."""
        c = self.config.model
        config = find_sizes(c.name)
        if not isinstance(config, DecoderConfig):
            raise RagJaxError(f"config.model.name={c.name}: is no language model")
        self.check_layer(config.num_layers)
        tokens = config.vocab_size + len(special_tokens(self.config.sources))
        padded = round_up(tokens, c.vocab_multiple)
        config = replace(config, vocab_size=padded, vocab_padding=padded - tokens)
        return describe_model(config, self.mesh, dtype=c.dtype)

    @cached_property
    def encoder(self) -> Pretrained:
        """The sentence encoder."""
        name = self.config.encoder.name
        config = find_sizes(name)
        if not isinstance(config, BertConfig):
            raise RagJaxError(f"config.encoder.name={name}: is no encoder")
        return describe_model(config, self.mesh)

    @property
    def new_ids(self) -> list[int]:
        """The ids of the tokens that the method added."""
        count = len(special_tokens(self.config.sources))
        end = self.base.config.vocab_size - self.base.config.vocab_padding
        return list(range(end - count, end))


def plan(config: SRRAGConfig, devices: Sequence[jax.Device], **options: Any) -> Planner:
    """Compiles the run's programs at the largest shapes it has for rows of the planned lengths.

    Args:
        options: of `Planner`.
    """
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    planner.hold(session.base.params, session.encoder.params)
    _plan_contexts(session, planner)
    _plan_training(session, planner)
    planner.hold(session.base.params, session.encoder.params)
    _plan_passes(session, planner)
    return planner


def list_remedies(config: SRRAGConfig, name: str) -> Iterator[tuple[str, SRRAGConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each.

    Args:
        name: of the program that does not fit.
    """

    if name.startswith("stage"):
        if config.tuning.remat != "full":
            yield change(config, "tuning.remat", "full")
        stage = "stage1" if name.startswith("stage 1") else "stage2"
        yield halve(config, f"{stage}.microbatch_tokens")
    else:
        batch = next((path for part, path in _BATCHES.items() if part in name), None)
        if batch:
            yield halve(config, batch)
    yield change(config, "mesh.model", 2 * max(config.mesh.model, 1))
    if config.tuning.mode == "full":
        yield change(config, "tuning.mode", "lora")


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
    c, base, encoder = session.config, session.base, session.encoder
    width = round_up(c.encoder.max_length, 16)
    rows = round_up(c.encoder.batch_size * 16 // width, session.mesh.shape["data"])
    planner.compile(
        "embed passages",
        embed_batch,
        encoder.model,
        encoder.params,
        planner.rows((rows, width), jnp.int32),
        planner.rows((rows,), jnp.int32),
    )
    examples = c.verbalise.demonstrations * (QUESTION + c.verbalise.max_tokens + 16)
    shared = round_up(examples, 64)
    prefix = planner.compile(
        "read demonstrations",
        prefill_batch,
        base.model,
        base.params,
        planner.whole((1, shared), jnp.int32),
        planner.whole((1, shared), bool),
    )
    size = c.verbalise.batch_size
    slots = QUESTION + c.verbalise.max_tokens
    cache = describe_cache(planner, base, size, slots, prefix)
    one = compile_token(planner, "one token of a document", base, cache, base.params)
    planner.compile(
        "write documents",
        generate_batch,
        base.model,
        base.params,
        prefix,
        planner.rows((size, QUESTION), jnp.int32),
        planner.rows((size, QUESTION), bool),
        planner.rows((size,), jnp.int32),
        0,
        max_tokens=c.verbalise.max_tokens,
        stop_ids=(0,),
        sampling=Sampling(temperature=c.verbalise.temperature),
        loop=(one, c.verbalise.max_tokens - 1),
    )
    size, width = c.label.batch_size, QUESTION + max(PASSAGE, c.verbalise.max_tokens) + 32
    places = round_up(c.answer.max_tokens, 8)
    planner.compile(
        "score contexts",
        score_batch,
        base.model,
        base.params,
        describe_cache(planner, base, 1, 64),
        planner.rows((size, width), jnp.int32),
        planner.rows((size, width), bool),
        *(planner.rows((size, places), dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32)),
    )


def _plan_training(session: PlannedSession, planner: Planner) -> None:
    """Both stages and the reference, in microbatches of the longest rows."""
    c, base = session.config, session.base
    trained = tune.describe_trainable(session)
    optimizer = tune.make_tuner(session, c.stage1, 1)
    state = describe_state(trained, optimizer)
    total = copy(trained)  # gradients lie where their parameters do
    frozen = None if c.tuning.mode == "full" else base.params
    parts = session.mesh.shape["data"]
    verbalised = QUESTION + 1 + c.verbalise.max_tokens + _CUE + c.answer.max_tokens
    searched = QUESTION + 1 + c.contexts * PASSAGE + _CUE + c.answer.max_tokens

    def batch(kind: str, length: int, targets: int, tokens: int) -> dict[str, Any]:
        sides = 2 if kind == "pairs" else 1
        width = round_up(length, 8)
        rows = max(1, tokens // (sides * width) // parts) * parts
        row, target = (rows * sides, width), (rows * sides, round_up(targets, 16))
        arrays = {
            "tokens": planner.rows(row, jnp.int32),
            "mask": planner.rows(row, bool),
            "at": planner.rows(target, jnp.int32),
            "next": planner.rows(target, jnp.int32),
            **{term: planner.rows(target, jnp.float32) for term in TERMS},
        }
        if kind == "pairs":
            arrays["reference"] = planner.rows((rows * sides,), jnp.float32)
            arrays["pair"] = planner.rows((rows,), jnp.float32)
        return arrays

    short = c.answer.max_tokens + 2  # the source, the answer and its end
    wanted = c.verbalise.max_tokens + 1 + short
    kinds = {
        "stage 1, gradients of searched rows": (
            "rows",
            searched,
            c.answer.max_tokens + 2,
            "stage1",
        ),
        "stage 1, gradients of verbalised rows": ("rows", verbalised, wanted, "stage1"),
        "stage 2, gradients of pairs": ("pairs", verbalised, wanted, "stage2"),
    }
    for name, (kind, length, targets, stage) in kinds.items():
        arrays = batch(kind, length, targets, getattr(c, stage).microbatch_tokens)
        planner.hold(base.params, session.encoder.params, state, total)
        planner.compile(
            name,
            compute_gradients,
            session.losses[kind],
            state.params,
            frozen,
            arrays,
            places=shardings_of(state.params),
        )
    planner.hold(base.params, session.encoder.params, state)
    compile_update(planner, "", optimizer, state, total)
    planner.hold(base.params, session.encoder.params)
    pairs = batch("pairs", verbalised, wanted, c.stage2.microbatch_tokens)
    inputs = {k: v for k, v in pairs.items() if k not in ("reference", "pair")}
    planner.compile(
        "score pairs under the reference",
        jax.jit(partial(sequence_logprobs, base.model)),
        copy(base.params),
        inputs,
    )


def _plan_passes(session: PlannedSession, planner: Planner) -> None:
    """The trained model's pass over questions, for the datastore and at test time."""
    c, base = session.config, session.base
    # The tuned parameters are kept beside those that they came from.
    params = copy(base.params)
    size = c.answer.batch_size
    knowledge = round_up(1 + max(c.verbalise.max_tokens, c.answer.passages * PASSAGE), 16)
    active = planner.rows((size,), bool)
    routed = planner.compile(
        "route",
        steps.route,
        base.model,
        params,
        planner.rows((size, QUESTION), jnp.int32),
        planner.rows((size, QUESTION), bool),
        source_ids=tuple(session.new_ids[2:]),
        layer=c.datastore.layer,
    )
    slots = QUESTION + 1 + c.verbalise.max_tokens
    token_cache = describe_cache(planner, base, size, slots)
    one = compile_token(planner, "one token of a verbalisation", base, token_cache, params)
    written = planner.compile(
        "verbalise",
        steps.verbalise,
        base.model,
        params,
        routed.cache,
        planner.rows((size,), jnp.int32),
        active,
        active,
        max_tokens=c.verbalise.max_tokens,
        stop_ids=(0,),
        loop=(one, c.verbalise.max_tokens - 1),
    )[0]
    learned = planner.compile(
        "read for answers",
        steps.read,
        base.model,
        params,
        written,
        planner.rows((size, knowledge), jnp.int32),
        planner.rows((size, knowledge), bool),
    )
    slots += knowledge + _CUE + c.answer.max_tokens
    token_cache = describe_cache(planner, base, size, slots)
    one = compile_token(planner, "one token of an answer", base, token_cache, params)
    planner.compile(
        "answer",
        steps.answer,
        base.model,
        params,
        learned,
        active,
        cue=(0,) * (_CUE - 1),
        max_tokens=c.answer.max_tokens,
        stop_ids=(0,),
        loop=(one, c.answer.max_tokens - 1),
    )
    entries = c.train_questions or c.world.train
    split = planner.whole if entries % session.mesh.shape["data"] else planner.rows
    datastore = policy.Datastore(
        split((entries, base.config.hidden_size), jnp.float32),
        planner.whole((entries,), jnp.int32),
        c.datastore.metric,
    )
    planner.compile(
        "vote",
        policy.vote,
        datastore,
        routed.key,
        planner.rows((size,), jnp.int32),
        k=c.datastore.k,
        num_sources=len(c.sources),
    )
