"""Training: the optimiser in closed form, resuming to the bit, and stopping on a bad loss."""

import contextlib
import re
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rag_jax.config import ConstantTrainConfig, TrainConfig
from rag_jax.runtime import trackers
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.runtime.track import tracking
from rag_jax.training import loop
from rag_jax.training.loop import init_state, make_optimizer, make_schedule, make_step, train

STEPS = 9
SETTINGS = TrainConfig(learning_rate=0.05, weight_decay=0.1, warmup_fraction=0.3)


def loss_fn(params, frozen, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"] + frozen["bias"][None])
    error = jnp.mean((hidden @ params["out"] - batch["y"]) ** 2)
    return error, {"loss_err": error}


def make_params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "in": jax.random.normal(keys[0], (4, 8)),
        "out": jax.random.normal(keys[1], (8, 2)),
    }


def batch_at(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    return {"x": x, "y": x[:, :2] ** 2}, [f"q{step}-{row}" for row in range(3)]


OPTIMIZER = make_optimizer(SETTINGS, STEPS)
STEP = make_step({"mse": loss_fn}, OPTIMIZER)
FROZEN = {"bias": jnp.full((8,), 0.1)}


@contextlib.contextmanager
def quiet(total, *, unit, initial):
    class Bar:
        def update(self, count):
            pass

        def set_postfix_str(self, text, *, refresh):
            assert re.fullmatch(r"loss -?\d+\.\d{4}", text) and not refresh

    yield Bar()


def run(folder, *, batch_at=batch_at, step_fn=None, checkpoint_every=100, profile_steps=0):
    folder.mkdir(exist_ok=True)
    return train(
        init_state(make_params(), OPTIMIZER),
        step_fn or (lambda state, batch: STEP(state, FROZEN, [("mse", batch)])),
        batch_at,
        total_steps=STEPS,
        checkpoints=Checkpoints(folder / "checkpoints"),
        checkpoint_every=checkpoint_every,
        progress=quiet,
        log_path=folder / "log.jsonl",
        flops_at=lambda step: 1e6,
        profile_steps=profile_steps,
    )


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return run(folder), read_jsonl(folder / "log.jsonl")


def test_schedule():
    schedule = make_schedule(TrainConfig(learning_rate=1.0, warmup_fraction=0.2), 10)
    rates = [float(schedule(jnp.int32(step))) for step in range(11)]
    wanted = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]
    np.testing.assert_allclose(rates, wanted, atol=1e-6)
    assert float(make_schedule(TrainConfig(), 1)(jnp.int32(0))) == pytest.approx(1e-3)


def test_first_update_is_adamw_in_closed_form():
    # With bias correction, Adam's first update is the gradient's sign.
    settings = TrainConfig(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5, clip_norm=1.0)
    optimizer = make_optimizer(settings, 10)

    def loss(p, frozen, batch):
        return jnp.sum(p["w"] * batch) + p["b"][0], {}

    step = make_step({"linear": loss}, optimizer)
    params = {"w": jnp.array([[2.0, -3.0]]), "b": jnp.array([4.0])}
    params["logits_bias"] = jnp.array([[5.0, 6.0]])
    state, metrics = step(
        init_state(params, optimizer), None, [("linear", jnp.array([[3.0, -4.0]]))]
    )
    np.testing.assert_allclose(state.params["w"], [[2 - 0.1 - 0.1, -3 + 0.1 + 0.15]], rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], [3.9], rtol=1e-5)  # no decay on vectors
    np.testing.assert_array_equal(state.params["logits_bias"], [[5.0, 6.0]])  # nor on biases
    np.testing.assert_allclose(metrics["grad_norm"], 26**0.5, rtol=1e-6)
    np.testing.assert_array_equal(params["w"], [[2.0, -3.0]])  # the caller's arrays are still there


def test_straight_run(straight):
    state, log = straight
    assert int(state.step) == STEPS
    assert [line["step"] for line in log] == list(range(STEPS))
    assert log[-1]["loss"] < log[0]["loss"]
    assert set(log[0]) == {"step", "loss", "grad_norm", "loss_err"}


def test_a_second_batch_compiles_nothing(straight):
    state = init_state(make_params(), OPTIMIZER)
    before = None
    for number in range(3):
        batch, _ = batch_at(number)
        state, metrics = STEP(state, FROZEN, [("mse", batch), ("mse", batch)])
        jax.block_until_ready(metrics)
        if before is None:
            before = compile_seconds()
    assert compile_seconds() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 1, 4, STEPS - 1])
def test_a_signal_and_again_ends_with_the_same_bits(tmp_path, straight, at, number):
    def interrupting(step):
        if step == at:
            signal.raise_signal(number)
        return batch_at(step)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Preempted):
        run(tmp_path, batch_at=interrupting)
    assert signal.getsignal(number) is before
    assert Checkpoints(tmp_path / "checkpoints").steps() == [at + 1]
    seen = []
    state = run(tmp_path, batch_at=lambda step: seen.append(step) or batch_at(step))
    assert seen == list(range(at + 1, STEPS))
    assert_same(state, straight[0])
    assert read_jsonl(tmp_path / "log.jsonl") == straight[1]


@pytest.mark.parametrize("at", range(1, STEPS))
def test_a_killed_run_loses_at_most_the_checkpoint_interval(tmp_path, straight, at):
    class Killed(BaseException):
        pass

    def killed(step):
        if step == at:
            raise Killed
        return batch_at(step)

    with pytest.raises(Killed):
        run(tmp_path, batch_at=killed, checkpoint_every=3)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 1, "lo')
    seen = []
    state = run(tmp_path, batch_at=lambda step: seen.append(step) or batch_at(step))
    assert seen == list(range(at // 3 * 3, STEPS))
    assert_same(state, straight[0])
    assert read_jsonl(tmp_path / "log.jsonl") == straight[1]


@pytest.mark.parametrize("fails", [None, 0, 6])
def test_a_tracker_has_the_log_and_changes_nothing(tmp_path, straight, monkeypatch, fails):
    opened = []

    class Told(list):
        def log(self, values, step):
            if step == fails:
                raise OSError("full")
            self.append({"step": step, **values})

        def close(self):
            opened.append(self)

    def killed(step):
        if step == 5:
            raise ValueError
        return batch_at(step)

    monkeypatch.setitem(trackers.OPENERS, "trackio", lambda tracked: Told())
    with tracking(trackers.Tracked("trackio", tmp_path, "s", "m")):
        with pytest.raises(ValueError):
            run(tmp_path, batch_at=killed, checkpoint_every=2)
        state = run(tmp_path)
    assert_same(state, straight[0])
    assert read_jsonl(tmp_path / "log.jsonl") == straight[1]
    names = {f"s/{name}": name for name in straight[1][0]} | {"step": "step"}
    told = [[{names[n]: v for n, v in line.items()} for line in lines] for lines in opened]
    assert told == [straight[1][:4][:fails], straight[1][:fails]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    def spoiled(step):
        batch, ids = batch_at(step)
        return (batch | {"y": batch["y"] * bad} if step == 4 else batch), ids

    with pytest.raises(RagJaxError, match="at step 4, on examples q4-0, q4-1, q4-2") as caught:
        run(tmp_path, batch_at=spoiled, checkpoint_every=5)
    assert "\n" not in str(caught.value)
    saved = read_json(tmp_path / "nonfinite.json")
    assert saved["step"] == 4
    assert saved["ids"] == ["q4-0", "q4-1", "q4-2"]
    assert [line["step"] for line in read_jsonl(tmp_path / "log.jsonl")] == [0, 1, 2, 3]
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    """Though the loss is finite: the square root of 0 has no slope."""

    def measure(params, frozen, batch):
        return jnp.sqrt(((batch["x"] @ params["in"]) ** 2).sum()) + params["out"].sum(), {}

    step = make_step({"norm": measure}, OPTIMIZER)

    def spoiled(step):
        batch, ids = batch_at(step)
        return batch | {"x": batch["x"] * (step != 4)}, ids

    with pytest.raises(RagJaxError, match="the gradients' norm is nan at step 4, on examples q4-0"):
        run(
            tmp_path,
            step_fn=lambda state, batch: step(state, FROZEN, [("norm", batch)]),
            batch_at=spoiled,
            checkpoint_every=5,
        )
    assert read_json(tmp_path / "nonfinite.json")["step"] == 4
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_zero_steps(tmp_path):
    state = init_state(make_params(), OPTIMIZER)
    trained = train(
        state,
        lambda state, batch: STEP(state, FROZEN, [("mse", batch)]),
        batch_at,
        total_steps=0,
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
        checkpoint_every=1,
        progress=quiet,
        log_path=tmp_path / "log.jsonl",
        flops_at=lambda step: 1e6,
    )
    assert_same(trained, state)


def test_microbatches_add_up_to_the_batch():
    """A weighted mean over two parts takes the step that the whole batch takes."""

    def loss(params, frozen, batch):
        value = (batch["weight"] * (batch["x"] @ params["w"]) ** 2).sum()
        return value, {"rows": batch["weight"].sum()}

    rng = np.random.default_rng(0)
    whole = {
        "x": rng.normal(size=(6, 3)).astype(np.float32),
        "weight": np.full((6,), 1 / 6, np.float32),
    }
    parts = [jax.tree.map(lambda leaf, s=s: leaf[s], whole) for s in (slice(0, 4), slice(4, 6))]
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    step = make_step({"rows": loss}, OPTIMIZER)
    one, logged_one = step(init_state(params, OPTIMIZER), None, [("rows", whole)])
    two, logged_two = step(init_state(params, OPTIMIZER), None, [("rows", p) for p in parts])
    np.testing.assert_allclose(one.params["w"], two.params["w"], rtol=1e-6)
    for name in logged_one:
        np.testing.assert_allclose(logged_one[name], logged_two[name], rtol=1e-5)


def test_the_log_says_how_fast_the_steps_were(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "find_peak", lambda devices: 5e9)
    run(tmp_path, checkpoint_every=4)
    lines = read_jsonl(tmp_path / "speed.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["step"] for line in lines if line["save_seconds"]] == [4, 8]
    for line in lines:
        assert line["seconds"] > 0
        assert line["of_peak"] == pytest.approx(line["gflops"] / 5)
        # Compiling is no part of it: the seconds without it are what the rate was taken over.
        assert 1e6 / (line["gflops"] * 1e9) <= line["seconds"] * (1 + 1e-6)


def test_some_steps_are_traced_on_demand(tmp_path, straight):
    state = run(tmp_path, profile_steps=2)
    assert_same(state, straight[0])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_run_of_too_few_steps_is_not_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "STEPS", 2)
    run(tmp_path, profile_steps=2)
    assert not (tmp_path / "profile").exists()


def test_a_constant_rate_is_neither_scheduled_nor_clipped():
    settings = ConstantTrainConfig(learning_rate=0.1, weight_decay=0.01)
    params = {"a": jnp.ones((2, 2))}
    own, plain = make_optimizer(settings, 4), optax.adamw(0.1, weight_decay=0.01)
    states, trees = [own.init(params), plain.init(params)], [params, params]
    for step in range(4):
        grads = {"a": jnp.full((2, 2), 10.0 ** (3 * step))}  # far over any norm to clip to
        for i, optimizer in enumerate((own, plain)):
            updates, states[i] = optimizer.update(grads, states[i], trees[i])
            trees[i] = optax.apply_updates(trees[i], updates)
    np.testing.assert_array_equal(trees[0]["a"], trees[1]["a"])
