"""The training driver: hooks, rates, what is saved, and resuming to the bit."""

import contextlib
import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from rag_jax.config import MeshConfig, TrainConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.runtime.checkpoint import Checkpoints, load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.runtime.sharding import make_mesh
from rag_jax.training import fit as driver
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import init_state, make_optimizer, make_step
from rag_jax.training.trainable import Trainable

SETTINGS = TrainConfig(
    epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.1, checkpoint_every=2
)
EXAMPLES, STEPS = 10, 9  # three steps an epoch
PLAN = BatchPlan([0] * EXAMPLES, batch_size=4, seed=3)
IDS = [f"q{i}" for i in range(EXAMPLES)]
BASE = {
    "in": {"kernel": jax.random.normal(jax.random.key(0), (4, 8))},
    "out": {"kernel": jax.random.normal(jax.random.key(1), (8, 2))},
}
RULES = ((".*/kernel", jax.sharding.PartitionSpec()),)


def loss_fn(params, frozen, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["kernel"] + frozen["bias"][None])
    error = (hidden @ params["out"]["kernel"] - batch["y"]) ** 2
    return (error.mean(axis=1) * batch["weight"]).sum(), {"rows": (batch["weight"] > 0).sum()}


LOSSES = {"rows": loss_fn, "others": loss_fn}


def pack(step, chosen):
    """Two microbatches of two kinds, which depend on the step and on the examples."""
    microbatches = []
    for name, indices in (("rows", chosen[:2]), ("others", chosen[2:])):
        x = np.random.default_rng((step, *indices)).normal(size=(2, 4)).astype(np.float32)
        weight = np.float32([i < len(indices) for i in range(2)]) / len(chosen)
        microbatches.append((name, {"x": x, "y": x[:, :2] ** 2, "weight": weight}))
    return Batch(microbatches, flops=1e6 * (step + 1))


def make_trainable(**changes):
    settings = {
        "base": BASE,
        "frozen": {"bias": jnp.full((8,), 0.1)},
        "init": lambda base: base,
        "merge": lambda trained, base: jax.tree.map(jnp.subtract, trained, base),
        "rules": RULES,
        "mesh": make_mesh(MeshConfig()),
    }
    return Trainable(**settings | changes)


@contextlib.contextmanager
def quiet(total, *, unit, initial):
    yield tqdm(disable=True)


def run(folder, *, pack=pack, trainable=None, settings=SETTINGS, plan=PLAN, ids=IDS, **options):
    folder.mkdir(exist_ok=True)
    trainable = make_trainable() if trainable is None else trainable
    fit(plan, pack, LOSSES, trainable, settings, folder, quiet, ids=ids, **options)
    return load_tree(folder / "params", BASE) if (folder / "params").exists() else None


def run_until(step, folder, *, pack=pack, **options):
    """A run that is interrupted when it packs that step."""

    def stop(number, chosen):
        if number == step:
            raise KeyboardInterrupt
        return pack(number, chosen)

    with pytest.raises(KeyboardInterrupt):
        run(folder, pack=stop, **options)


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """All runs with equal settings share their optimiser, and with it their programs."""
    monkeypatch.setattr(driver, "make_optimizer", share_optimizer)


def share_optimizer(settings, total, *, rates):
    key = (settings, total, json.dumps(rates, sort_keys=True))
    if key not in _known:
        _known[key] = make_optimizer(settings, total, rates=rates)
    return _known[key]


_known = {}


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The trained tree of a run that was not interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "make_optimizer", share_optimizer)
        return run(folder), folder


def test_fit_takes_the_steps_of_its_plan(straight):
    """As a loop over the plan's batches would, written down here."""
    optimizer = make_optimizer(SETTINGS, STEPS)
    step, frozen = make_step(LOSSES, optimizer), make_trainable().frozen
    state, logged = init_state(BASE, optimizer), []
    for number in range(STEPS):
        state, metrics = step(state, frozen, pack(number, PLAN.examples_at(number)).microbatches)
        logged.append({name: float(value) for name, value in metrics.items()})
    assert_same(straight[0], state.params)
    log = read_jsonl(straight[1] / "log.jsonl")
    assert log == [{"step": number, **metrics} for number, metrics in enumerate(logged)]
    assert [line["rows"] for line in log] == [len(PLAN.examples_at(i)) for i in range(STEPS)]


def test_a_number_of_steps_replaces_the_epochs(tmp_path, straight):
    settings = replace(SETTINGS, epochs=1)
    assert_same(run(tmp_path / "whole", settings=settings, steps=STEPS), straight[0])
    run(tmp_path / "part", settings=settings, steps=4)  # one step into the second epoch
    assert len(read_jsonl(tmp_path / "part" / "log.jsonl")) == 4
    assert_same(run(tmp_path / "none", steps=0), BASE)


def test_the_result_is_saved_and_checkpoints_are_removed(straight):
    names = {path.name for path in straight[1].iterdir()}
    assert names == {"params", "log.jsonl", "speed.jsonl"}
    assert [line["step"] for line in read_jsonl(straight[1] / "speed.jsonl")] == list(range(STEPS))
    trainable = make_trainable()
    assert_same(trainable.load(straight[1] / "params"), straight[0])
    merged = jax.tree.map(jnp.subtract, straight[0], BASE)
    assert_same(trainable.load_merged(straight[1] / "params"), merged)


def test_a_second_call_does_nothing(straight):
    folder = straight[1]
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    fit(None, None, None, None, None, folder, None, ids=None)
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("at", range(STEPS))
def test_an_interrupted_call_and_another_end_with_the_same_bits(tmp_path, straight, at):
    packed = []

    def count(step, chosen):
        packed.append(step)
        return pack(step, chosen)

    run_until(at, tmp_path)
    assert not (tmp_path / "params").exists()
    found = run(tmp_path, pack=count)
    assert packed == list(range(at // 2 * 2, STEPS))  # a checkpoint at every second step
    assert_same(found, straight[0])
    assert read_jsonl(tmp_path / "log.jsonl") == read_jsonl(straight[1] / "log.jsonl")


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"steps": 3}, "steps"),
        ({"plan": BatchPlan([0] * EXAMPLES, batch_size=4, seed=4)}, "batches"),
        ({"settings": replace(SETTINGS, learning_rate=0.1)}, "learning_rate"),
        ({"ids": IDS[::-1], "steps": 8}, "steps and examples"),
        ({"settings": replace(SETTINGS, clip_norm=1e-3)}, "clip_norm"),
        ({"settings": replace(SETTINGS, warmup_fraction=0.9)}, "warmup_fraction"),
        ({"plan": BatchPlan([0, 1] * (EXAMPLES // 2), batch_size=4, seed=3)}, "strata"),
        ({"settings": replace(SETTINGS, checkpoint_every=5, microbatch_tokens=4)}, ""),
    ],
)
def test_another_training_does_not_go_on_from_its_checkpoints(tmp_path, straight, changes, others):
    run_until(4, tmp_path)
    if others:
        with pytest.raises(RagJaxError, match=f"of a training with other {others}: give this one"):
            run(tmp_path, **changes)
        changes = {}
    assert_same(run(tmp_path, **changes), straight[0])


@pytest.mark.parametrize(("missing", "others"), [("clip_norm", ""), ("examples", "examples")])
def test_checkpoints_that_say_less(tmp_path, straight, missing, others):
    """Earlier versions' go on; ones without what those said do not."""
    run_until(4, tmp_path)
    path = tmp_path / "checkpoints" / "training.json"
    said = json.loads(path.read_text())
    del said[missing]
    path.write_text(json.dumps(said))
    if others:
        with pytest.raises(RagJaxError, match=f"of a training with other {others}: give this one"):
            run(tmp_path)
    else:
        assert_same(run(tmp_path), straight[0])


def test_interrupted_while_the_result_is_saved(tmp_path, straight):
    def stop(params):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, save=stop)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 8]
    assert_same(run(tmp_path), straight[0])


def test_killed_before_the_checkpoints_are_removed(tmp_path, straight, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "remove", lambda self: None)
        run(tmp_path)
    assert (tmp_path / "checkpoints").exists()
    assert_same(run(tmp_path), straight[0])
    assert not (tmp_path / "checkpoints").exists()


def test_another_start(tmp_path, straight):
    start = jax.tree.map(lambda leaf: 2 * leaf, BASE)
    found = run(tmp_path / "given", start=start)
    assert_same(start, jax.tree.map(lambda leaf: 2 * leaf, BASE))  # not donated
    doubled = make_trainable(init=partial(jax.tree.map, lambda leaf: 2 * leaf))
    assert_same(found, run(tmp_path / "made", trainable=doubled))
    assert not np.array_equal(found["in"]["kernel"], straight[0]["in"]["kernel"])


def test_no_epochs_save_the_start(tmp_path):
    saved = run(tmp_path, settings=TrainConfig(epochs=0))
    assert_same(saved, BASE)
    assert read_jsonl(tmp_path / "log.jsonl") == []


def test_the_result_is_kept_in_another_way(tmp_path, straight):
    kept = []
    assert run(tmp_path, save=lambda params: kept.append(jax.device_get(params))) is None
    assert_same(kept, [straight[0]])
    files = {"log.jsonl", "speed.jsonl", "trained.json"}
    assert {path.name for path in tmp_path.iterdir()} == files
    # Killed before its stage has ended, it is not trained again.
    run(tmp_path, save=kept.append, pack=None)
    assert len(kept) == 1


class Recorder:
    """A hook that writes down its calls and the trained tree that it sees."""

    def __init__(self):
        self.calls, self.seen = [], []

    def pack(self, step, chosen):
        self.calls.append(("pack", step))
        return pack(step, chosen)

    def before(self, step, params):
        self.calls.append(("before", step))
        self.seen.append(jax.device_get(params))

    def after(self, step, params):
        self.calls.append(("after", step))
        self.seen.append(jax.device_get(params))
        return {"squares": jnp.sum(params["in"]["kernel"] ** 2), "step_squared": step**2}


def test_a_hook_is_called_before_and_after_each_step(tmp_path, straight):
    hook = Recorder()
    found = run(tmp_path, pack=hook.pack, hook=hook)
    assert hook.calls == [
        (name, step) for step in range(STEPS) for name in ("pack", "before", "after")
    ]
    # Before a step it sees what the step before made, and after it what the step makes of that.
    before, after = hook.seen[::2], hook.seen[1::2]
    assert_same(before[0], BASE)
    for number in range(1, STEPS):
        assert_same(before[number], after[number - 1])
        assert not np.array_equal(before[number]["in"]["kernel"], after[number]["in"]["kernel"])
    assert_same(after[-1], found)
    # The hook changes no step, and its metrics are logged with the step's.
    assert_same(found, straight[0])
    log, plain = (read_jsonl(folder / "log.jsonl") for folder in (tmp_path, straight[1]))
    for number, (line, wanted) in enumerate(zip(log, plain, strict=True)):
        assert line.pop("step_squared") == number**2
        assert line.pop("squares") == pytest.approx(
            (after[number]["in"]["kernel"] ** 2).sum(), rel=1e-6
        )
        assert line == wanted


def test_a_resumed_run_calls_its_hook_from_where_it_stopped(tmp_path, straight):
    hook, again = Recorder(), Recorder()
    run_until(5, tmp_path, pack=hook.pack, hook=hook)
    found = run(tmp_path, hook=again)
    assert again.calls == [(name, step) for step in range(4, STEPS) for name in ("before", "after")]
    assert_same(again.seen[0], hook.seen[8])  # before step 4, to the bit
    assert_same(found, straight[0])


def test_rates_are_factors_on_the_learning_rate(tmp_path):
    """One step without decay or clipping: Adam's update is proportional to its rate."""
    settings = TrainConfig(epochs=1, batch_size=10, learning_rate=0.01, clip_norm=1e6)
    plan = BatchPlan([0] * EXAMPLES, batch_size=10, seed=0)

    def pack_whole(step, chosen):
        return Batch(pack(step, chosen[:4]).microbatches, 0.0)

    def find_updates(name, rates):
        folder = tmp_path / name
        found = run(
            folder,
            plan=plan,
            settings=settings,
            pack=pack_whole,
            trainable=make_trainable(rates=rates),
        )
        return {part: found[part]["kernel"] - BASE[part]["kernel"] for part in BASE}

    plain = find_updates("plain", {})
    rated = find_updates("rated", {"out": 3.0})
    np.testing.assert_array_equal(rated["in"], plain["in"])
    np.testing.assert_allclose(rated["out"], 3 * plain["out"], rtol=1e-4)
    frozen = find_updates("frozen", {"in": 0.0, "out": 0.5})
    np.testing.assert_array_equal(frozen["in"], 0)
    np.testing.assert_allclose(frozen["out"], 0.5 * plain["out"], rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_names_its_examples(tmp_path):
    def spoiled(step, chosen):
        batch = pack(step, chosen)
        if step == 4:
            batch.microbatches[0][1]["y"][:] = np.nan
        return batch

    ids = [IDS[i] for i in PLAN.examples_at(4)]
    message = f"the loss is nan at step 4, on examples {', '.join(ids)} .saved in"
    with pytest.raises(RagJaxError, match=message):
        run(tmp_path, pack=spoiled)
    assert read_json(tmp_path / "nonfinite.json")["ids"] == ids
    assert not (tmp_path / "params").exists()


def test_speed_is_logged_by_the_batches_flops(tmp_path, monkeypatch):
    monkeypatch.setattr("rag_jax.training.loop.find_peak", lambda devices: 1e9)
    counted = []
    monkeypatch.setattr(
        "rag_jax.training.loop._measure_speed",
        lambda clock, flops, peak: counted.append(flops) or {"seconds": 1.0},
    )
    run(tmp_path)
    assert counted == [1e6 * (step + 1) for step in range(STEPS)]


def test_steps_are_traced_on_demand(tmp_path, straight):
    assert_same(run(tmp_path, profile_steps=1), straight[0])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
