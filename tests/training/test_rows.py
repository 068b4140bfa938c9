"""Training on rows: the spans that count, and the driver against a loop written down here."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows
from tqdm import tqdm

from rag_jax.config import MeshConfig, TrainConfig, TuningConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import DECODER_RULES, make_mesh
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.rows import (
    Row,
    count_step_flops,
    fit_rows,
    pack_rows,
    plan_packing,
    sum_rows,
    target_logprobs,
)
from rag_jax.training.trainable import make_trainable

MODEL, PARAMS = make_decoder(num_layers=1)
LENGTHS = [6, 9, 13, 7, 15, 5, 11, 8, 30, 6]
ROWS = [
    Row(f"r{i}", tokens, {"answer": (len(tokens) - 3, len(tokens)), "cue": (1, 2)})
    for i, tokens in enumerate(make_rows(LENGTHS))
]
TERMS = ("cue", "answer")
STRATA = [i % 2 for i in range(len(ROWS))]
SETTINGS = TrainConfig(epochs=2, batch_size=5, microbatch_tokens=32, checkpoint_every=1)
STEPS = 4


@pytest.mark.parametrize("span", [(0, 2), (2, 2), (3, 2), (1, 5), (-1, 3)])
def test_spans_that_nothing_predicts_or_that_end_elsewhere(span):
    with pytest.raises(RagJaxError, match=r"row a: span answer=.* of 4 tokens: must begin at 1"):
        Row("a", [5, 6, 7, 8], {"cue": (1, 4), "answer": span})


def make(mode):
    return make_trainable(
        TuningConfig(mode=mode, rank=2),
        PARAMS,
        rules=DECODER_RULES,
        mesh=make_mesh(MeshConfig()),
        seed=0,
        dtype=jnp.float32,
    )


def make_loss(trainable):
    def loss(params, frozen, batch):
        weights = batch["cue"] + batch["answer"]
        logprobs = target_logprobs(MODEL, trainable.merge(params, frozen), batch)
        return -(weights * logprobs).sum(), {"targets": (weights > 0).sum()}

    return loss


def make_plan():
    plan = BatchPlan(STRATA, batch_size=SETTINGS.batch_size, seed=1)
    rows = [[row] for row in ROWS]
    return plan, plan_packing(rows, plan, SETTINGS, MODEL.config, kinds=[""] * len(ROWS))


def pack(packing, micro):
    sequences = [[ROWS[i] for i in sequence] for sequence in micro.sequences]
    sizes = {"width": micro.width, "targets": packing.shapes[""].targets, "batch": micro.rows}
    return pack_rows(sequences, terms=TERMS, **sizes, scale=1 / 5, reduction="mean")


@contextlib.contextmanager
def quiet(total, *, unit, initial):
    yield tqdm(disable=True)


def run(folder, trainable, loss):
    folder.mkdir(exist_ok=True)
    fit_rows(
        ROWS,
        loss,
        trainable,
        SETTINGS,
        folder,
        quiet,
        config=MODEL.config,
        terms=TERMS,
        strata=STRATA,
        seed=1,
    )
    return load_tree(folder / "params", trainable.abstract())


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_rows_are_trained_on_in_the_plans_order(tmp_path, mode):
    trainable = make(mode)
    loss = make_loss(trainable)
    found = run(tmp_path, trainable, loss)

    plan, packing = make_plan()
    optimizer = make_optimizer(SETTINGS, STEPS)
    step, state = make_step({"rows": loss}, optimizer), init_state(trainable.start(), optimizer)
    losses, seen = [], []
    for number in range(STEPS):
        chosen = plan.examples_at(number)
        assert sum(STRATA[i] for i in chosen) in (2, 3)
        seen += chosen
        parts = [("rows", pack(packing, micro)) for micro in packing.group(chosen)]
        state, metrics = step(state, trainable.frozen, parts)
        losses.append(float(metrics["loss"]))
        assert metrics["targets"] == 5 * 4
    assert sorted(seen) == sorted([*range(len(ROWS))] * 2)
    jax.tree.map(np.testing.assert_array_equal, found, state.params)
    assert [line["loss"] for line in read_jsonl(tmp_path / "log.jsonl")] == losses


def test_interrupted_training_on_rows_ends_with_the_same_bits(tmp_path, monkeypatch):
    trainable = make("lora")
    loss, optimizer = make_loss(trainable), make_optimizer(SETTINGS, STEPS)
    monkeypatch.setattr("rag_jax.training.fit.make_optimizer", lambda *_, **__: optimizer)
    wanted = run(tmp_path / "straight", trainable, loss)
    packed = []

    def stop(rows, **settings):
        packed.append(rows)
        if len(packed) == 6:
            raise KeyboardInterrupt
        return pack_rows(rows, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("rag_jax.training.rows.pack_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", trainable, loss)
    found = run(tmp_path / "stopped", trainable, loss)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_flops_count_the_tokens_and_the_targets():
    """A third pass, for the gradients of weights, where all weights are trained."""
    config, rows = MODEL.config, ROWS[:3]
    assert [row.num_targets for row in rows] == [4, 4, 4]
    once = config.count_flops(6 + 9 + 13, 12)
    assert count_step_flops(config, iter(rows), full=False) == 2 * once
    assert count_step_flops(config, rows, full=True) == 3 * once


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_rows_in_one_sequence_are_as_rows_alone(mode):
    """Losses, gradients and sums of packed rows against a sequence for each row."""
    trainable = make(mode)
    start, loss = trainable.start(), make_loss(trainable)
    if mode == "lora":  # b starts at zero, and a would have no gradient
        start = jax.tree.map(lambda leaf: leaf + 0.1, start)
    settings = {"terms": TERMS, "targets": 16, "scale": 0.1, "reduction": "mean"}
    alone = pack_rows([[row] for row in ROWS], width=32, batch=12, **settings)
    packed = [[ROWS[i] for i in part] for part in ((8,), (0, 4, 6), (1, 2), (3, 5, 7), (9,))]
    packed = pack_rows(packed, width=40, batch=6, **settings)
    compute = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (one, _), wanted = compute(start, trainable.frozen, alone)
    (other, _), found = compute(start, trainable.frozen, packed)
    assert float(one) == pytest.approx(float(other), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)

    params = trainable.merge(start, trainable.frozen)

    def score(batch, count):
        weights = (batch["answer"] > 0).astype(jnp.float32)
        return sum_rows(target_logprobs(MODEL, params, batch) * weights, batch["row"], count)

    score = jax.jit(score, static_argnums=1)
    single, many = score(alone, 1)[:, 0], score(packed, 3)
    order = [(0, 8), (1, 0), (1, 4), (1, 6), (2, 1), (2, 2), (3, 3), (3, 5), (3, 7), (4, 9)]
    places = [(b, [p for p, _ in order[:n]].count(b)) for n, (b, _) in enumerate(order)]
    for (b, place), (_, row) in zip(places, order, strict=True):
        np.testing.assert_allclose(many[b, place], single[row], rtol=1e-5)
