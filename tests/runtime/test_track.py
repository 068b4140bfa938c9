"""Trackers: what they are told, where they go on, and that a run does not depend on them."""

import importlib.util
import re
import struct
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

from rag_jax.config import TrackerName
from rag_jax.runtime import trackers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_jsonl
from rag_jax.runtime.hosts import only_reading
from rag_jax.runtime.track import check_tracker, open_tracker, tracking
from rag_jax.runtime.trackers import NONE, OPENERS, PACKAGES, Service, Tracked
from rag_jax.systems.dpr.config import DPRConfig

SETUP = Path(__file__).parents[2] / "setup.py"


class Told:
    """A tracker that notes what it is told, and fails at a step or at its end."""

    def __init__(self, fails=None):
        self.points, self.fails, self.closed = [], fails, 0

    def log(self, values, step):
        if step == self.fails:
            raise OSError(28, "No space left on device")
        self.points.append((step, values))

    def close(self):
        self.closed += 1
        if self.fails == "close":
            raise TimeoutError("nobody answers")


def track(monkeypatch, tracker, folder, steps, log_path=None):
    monkeypatch.setitem(trackers.OPENERS, "trackio", lambda tracked: tracker)
    with tracking(Tracked("trackio", folder, "stage", "m")), open_tracker(log_path) as opened:
        for step in steps:
            opened.log({"loss": step / 2, "rate": None, "norm": float("inf")}, step)
    return [step for step, _ in tracker.points]


def test_every_tracker_has_its_name_and_its_extra():
    assert typing.get_args(TrackerName) == (NONE, *PACKAGES) == (NONE, *OPENERS)
    for name in PACKAGES:
        assert re.search(rf'^        "{name}": \[', SETUP.read_text("utf-8"), re.MULTILINE)


def test_curves_have_the_stages_name_and_the_steps_before(tmp_path, monkeypatch):
    told, log = Told(), tmp_path / "log.jsonl"
    write_jsonl(log, [{"step": 0, "loss": 9.0, "rate": None}, {"step": 1, "loss": 8.0}])
    assert track(monkeypatch, told, tmp_path, [2], log) == [0, 1, 2]
    assert [values for _, values in told.points] == [{"stage/loss": x} for x in (9.0, 8.0, 1.0)]
    assert told.closed == 1


def test_nothing_is_tracked_unless_asked_for_and_by_the_first_process(tmp_path, monkeypatch):
    told = Told()
    monkeypatch.setitem(trackers.OPENERS, "trackio", lambda tracked: told)
    with open_tracker(tmp_path / "missing") as tracker:
        tracker.log({"loss": 1.0}, 0)
    with tracking(Tracked(NONE, tmp_path, "stage", "m")), open_tracker() as tracker:
        tracker.log({"loss": 1.0}, 0)
    with only_reading():
        track(monkeypatch, told, tmp_path, [0, 1])
    assert told.points == [] and told.closed == 0


@pytest.mark.parametrize(
    ("fails", "steps", "reason"),
    [
        (2, [0, 1], "OSError: [Errno 28] No space left on device"),
        ("close", [0, 1, 2, 3], "TimeoutError: nobody answers"),
    ],
)
def test_a_tracker_that_fails_is_given_up_in_one_line(
    tmp_path, monkeypatch, capsys, fails, steps, reason
):
    told = Told(fails)
    assert track(monkeypatch, told, tmp_path, range(4)) == steps
    line = f"config.track='trackio': stage stage goes on without ({reason})\n"
    assert capsys.readouterr().err == line and told.closed == 1


def test_a_tracker_that_does_not_open_and_errors_of_the_stage(tmp_path, monkeypatch, capsys):
    def refuse(tracked):
        print("hello")
        raise ConnectionError("no\nnetwork")

    monkeypatch.setitem(trackers.OPENERS, "wandb", refuse)
    with tracking(Tracked("wandb", tmp_path, "stage", "m")), open_tracker() as tracker:
        tracker.log({"loss": 1.0}, 0)
    said = capsys.readouterr()
    assert "goes on without (ConnectionError: no network)" in said.err and said.out == ""
    told = Told()
    monkeypatch.setitem(trackers.OPENERS, "wandb", lambda tracked: told)
    with (
        pytest.raises(KeyboardInterrupt),
        tracking(Tracked("wandb", tmp_path, "stage", "m")),
        open_tracker(),
    ):
        raise KeyboardInterrupt
    assert told.closed == 1


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_refused(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    message = f"^config.track='{name}': {PACKAGES[name]} is not installed; .*rag_jax\\[{name}\\]'$"
    with pytest.raises(RagJaxError, match=message):
        check_tracker(DPRConfig(track=name))
    check_tracker(DPRConfig())
    check_tracker(None)


def test_a_service_is_sent_no_step_twice(tmp_path):
    """A run that was closed goes on, and one that was killed is made anew, whole."""
    runs = {}

    def begin(run_id):
        points = runs.setdefault(run_id, [])
        return lambda values, step: points.append(step), lambda: None

    def send(making, steps, close=True):
        service = Service(Tracked("wandb", tmp_path, "stage", making), begin)
        for step in steps:
            service.log({"stage/loss": 1.0}, step)
        if close:
            service.close()
        return list(runs.values())

    assert send("a", range(5)) == [[0, 1, 2, 3, 4]]
    assert send("a", range(3, 8)) == [[*range(8)]]
    assert send("a", range(6, 10), close=False) == [[*range(10)]]
    assert send("a", range(12)) == [[*range(10)], [*range(12)]]
    assert send("b", range(2)) == [[*range(10)], [*range(12)], [0, 1]]
    assert len(runs) == 3 and all(re.fullmatch("[0-9a-f]{32}", run_id) for run_id in runs)


def test_weights_and_biases_goes_on_offline(tmp_path, monkeypatch, capsys):
    calls, points = [], []

    def init(mode=None, **options):
        calls.append((mode, options["id"], options["group"].split("/")[-1], options["name"]))
        if mode is None:
            raise wandb.Error("no\nsuch host")
        log = lambda values, step, commit: points.append((values, step, commit))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: calls.append("finish"))

    wandb = SimpleNamespace(
        init=init,
        teardown=lambda: calls.append("teardown"),
        Error=type("Error", (Exception,), {}),
        Settings=lambda **settings: settings,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with tracking(Tracked("wandb", tmp_path, "stage", "m")), open_tracker() as tracker:
        tracker.log({"loss": 2.0}, 3)
    run = read_json(tmp_path / "wandb" / "stage.json")["run"]
    rest = run, tmp_path.name, "stage"
    assert calls == [(None, *rest), "teardown", ("offline", *rest), "finish"]
    assert points == [({"stage/loss": 2.0}, 3, True)]
    assert "offline-run-*` (no such host)\n" in capsys.readouterr().err


def read_events(folder):
    """Step, tag and value of every point in a folder's event files, by TFRecord's framing."""
    from tensorboardX.proto.event_pb2 import Event

    points = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return points


def test_event_files_are_the_log_whatever_was_there(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard")
    log = tmp_path / "log.jsonl"
    tracked = Tracked("tensorboard", tmp_path, "stage", "m")
    killed = OPENERS["tensorboard"](tracked)
    for step in range(7):
        killed.log({"stage/loss": 9.0}, step)
    killed._writer.flush()
    assert len(read_events(tmp_path / "tensorboard" / "stage")) == 7
    write_jsonl(log, [{"step": step, "loss": step / 4} for step in range(3)])
    with tracking(tracked), open_tracker(log) as tracker:
        for step in (3, 4):
            tracker.log({"loss": step / 4, "nll": 1.0}, step)
    wanted = [(step, "stage/loss", step / 4) for step in range(4)]
    wanted += [(3, "stage/nll", 1.0), (4, "stage/loss", 1.0), (4, "stage/nll", 1.0)]
    assert read_events(tmp_path / "tensorboard" / "stage") == wanted
