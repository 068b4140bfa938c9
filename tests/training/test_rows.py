"""Training on rows: the spans that count, and the driver against a loop written down here."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows
from tqdm import tqdm

from rag_jax.config import MeshConfig, TrainConfig, TuningConfig
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import DECODER_RULES, make_mesh
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.rows import (
    Row,
    count_step_flops,
    fit_rows,
    pack_rows,
    plan_rows,
    target_logprobs,
    widest_targets,
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

    plan, optimizer = plan_rows(ROWS, SETTINGS, strata=STRATA, seed=1), make_optimizer(SETTINGS, 4)
    step, state = make_step({"rows": loss}, optimizer), init_state(trainable.start(), optimizer)
    targets, losses, seen = {}, [], []
    for i, row in enumerate(ROWS):
        targets.setdefault(plan.place(i), []).append(row.num_targets)
    assert widest_targets(plan, {i: [row] for i, row in enumerate(ROWS)}) == dict.fromkeys(
        targets, 16
    )
    for number in range(STEPS):
        chosen = plan.examples_at(number)
        assert sum(STRATA[i] for i in chosen) in (2, 3)
        seen += chosen
        parts = [
            (
                "rows",
                pack_rows(
                    [ROWS[i] for i in micro.indices],
                    terms=TERMS,
                    width=micro.width,
                    targets=16,
                    batch=micro.rows,
                    scale=1 / 5,
                    reduction="mean",
                ),
            )
            for micro in plan.group(chosen)
        ]
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
