"""Stages: what is kept, continued and redone, and what an interruption costs."""

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.pipeline.records import LAYOUT
from rag_jax.pipeline.runner import open_stages, run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime import signals
from rag_jax.runtime.cuts import report_cut
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import open_atomic, read_json, read_jsonl, write_json, write_jsonl


class Chain:
    """Stages one, two (needs one) and other (needs nothing), and a list of those that ran."""

    def __init__(self):
        self.ran = []

    def stages(self, one=0, two=0, other=0, version=1):
        def run(context):
            self.ran.append(context.name)
            inputs = read_json(context.path("one", "out")) if context.name == "two" else 0
            write_json(context.folder / "out", inputs + 1)

        return [
            Stage("one", run, {"a": {"x": one, "y": 2}}, version=version),
            Stage("two", run, {"x": two}, needs=("one",)),
            Stage("other", run, {"x": other}),
        ]


def test_a_finished_stage_is_kept(tmp_path):
    chain = Chain()
    first = run_stages(chain.stages(), tmp_path, config={"seed": 1})
    assert chain.ran == ["one", "two", "other"]
    assert [record["reused"] for record in first] == [False] * 3
    second = run_stages(chain.stages(), tmp_path, config={"seed": 1})
    assert chain.ran == ["one", "two", "other"]
    assert second == [record | {"reused": True} for record in first]
    assert read_json(tmp_path / "config.json") == {"seed": 1}
    assert read_json(tmp_path / "stages" / "two" / "out") == 2


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"one": 1}, ["one", "two"]),
        ({"two": 1}, ["two"]),
        ({"other": 1}, ["other"]),
        ({"version": 2}, ["one", "two"]),
    ],
)
def test_a_change_redoes_what_it_affects(tmp_path, capsys, change, redone):
    run_stages(Chain().stages(), tmp_path)
    stale = tmp_path / "stages" / redone[0] / "stale"
    stale.touch()
    capsys.readouterr()
    chain = Chain()
    run_stages(chain.stages(**change), tmp_path)
    assert chain.ran == redone
    assert not stale.exists()
    said = capsys.readouterr().err
    if "one" in change:
        assert "stage one: settings changed (a.x: 0 -> 1), redoing" in said
        assert "stage two: one was made again, redoing" in said
    chain = Chain()
    run_stages(chain.stages(**change), tmp_path)
    assert chain.ran == []


def test_a_stage_made_again_takes_its_dependants_along(tmp_path):
    run_stages(Chain().stages(), tmp_path)
    (tmp_path / "stages" / "one" / "stage.json").unlink()
    chain = Chain()
    run_stages(chain.stages(), tmp_path)
    # Continued, not made anew: what "two" was made from is still there.
    assert chain.ran == ["one"]
    for file in (tmp_path / "stages" / "one").iterdir():
        file.unlink()
    chain = Chain()
    run_stages(chain.stages(), tmp_path)
    assert chain.ran == ["one", "two"]


def test_a_stage_says_how_much_was_cut(tmp_path, caplog):
    def run(context):
        for _ in range(3):
            report_cut(logging.getLogger("rag_jax"), "texts", cut=1, count=2, max_length=8)

    run_stages([Stage("one", run, {}), Stage("two", run, {})], tmp_path, config={})
    expected = [f"{n} of {2 * n} texts were cut to 8 tokens" for n in (1, 3)]
    assert caplog.messages == 2 * expected


def test_an_unreadable_record_means_redoing(tmp_path):
    run_stages(Chain().stages(), tmp_path)
    (tmp_path / "stages" / "other" / "stage.json").write_text('{"name": "oth')
    chain = Chain()
    run_stages(chain.stages(), tmp_path)
    assert chain.ran == ["other"]


def test_an_undeclared_artefact_is_refused(tmp_path):
    stages = [
        Stage("one", lambda context: None),
        Stage("two", lambda context: context.path("one", "out")),
    ]
    with pytest.raises(ValueError, match="does not declare that it needs one"):
        run_stages(stages, tmp_path)
    with pytest.raises(ValueError, match="needs one, which is not before it"):
        run_stages([Stage("two", lambda context: None, needs=("one",))], tmp_path)


ITEMS = list(range(23))


def make_records(batch):
    return [{"item": item, "text": "é\n" * item, "score": item / 3} for item in batch]


def make_rows(batch):
    return np.asarray(batch, np.float32)[:, None] * np.float32([1.0, 0.3])


def run_twice(workdir, body, work, *, at, damage):
    """Interrupts `body(context, work)` before call `at` of `work`, damages what it left, and runs
    it again; gives the number of calls that the second run made."""
    calls = 0

    def run(context, stop_at):
        def counted(batch):
            nonlocal calls
            calls += 1
            if calls - 1 == stop_at:
                raise KeyboardInterrupt
            return work(batch)

        body(context, counted)

    with pytest.raises(KeyboardInterrupt):
        run_stages([Stage("map", lambda context: run(context, at))], workdir)
    damage(workdir / "stages" / "map")
    calls = 0
    (record,) = run_stages([Stage("map", lambda context: run(context, -1))], workdir)
    assert not record["reused"]
    return calls


@pytest.mark.parametrize("torn", [0, 1, 100])
@pytest.mark.parametrize("at", range(6))
def test_an_interrupted_map_to_records_loses_at_most_a_batch(tmp_path, at, torn):
    def body(context, work):
        records = context.map("out.jsonl", ITEMS, work, batch_size=4, unit="items")
        assert records == make_records(ITEMS)

    def tear(folder):
        # A batch that was being written when the power went.
        write_jsonl(folder / "whole", make_records(ITEMS[4 * at :][:4]))
        lines = (folder / "whole").read_bytes()
        (folder / "whole").unlink()
        stop = min(4 * at + 4, len(ITEMS))
        (folder / f".out.{4 * at}-{stop}.jsonl.123.tmp").write_bytes(lines[:torn])

    assert run_twice(tmp_path, body, make_records, at=at, damage=tear) == 6 - at
    folder = tmp_path / "stages" / "map"
    assert read_jsonl(folder / "out.jsonl") == make_records(ITEMS)
    assert {path.name for path in folder.iterdir()} == {"out.jsonl", "started.json", "stage.json"}


@pytest.mark.parametrize("at", range(6))
def test_an_interrupted_map_to_rows_loses_at_most_a_batch(tmp_path, at):
    def body(context, work):
        array = context.map("out.npy", ITEMS, work, batch_size=4, unit="rows")
        np.testing.assert_array_equal(array, make_rows(ITEMS))

    def tear(folder):
        (folder / ".out.0-4.npy.123.tmp").write_bytes(b"half")

    assert run_twice(tmp_path, body, make_rows, at=at, damage=tear) == 6 - at
    folder = tmp_path / "stages" / "map"
    assert np.load(folder / "out.npy").dtype == np.float32
    assert {path.name for path in folder.iterdir()} == {"out.npy", "started.json", "stage.json"}


def test_rows_are_put_together_without_being_held(tmp_path):
    """Sixteen megabytes, in batches of one, within six."""

    def body(context):
        tracemalloc.start()
        try:
            rows = context.map("out.npy", range(4096), make, batch_size=256, unit="rows")
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(rows[:, 0], np.arange(4096))
        assert rows.shape == (4096, 1024) and rows.dtype == np.float32

    def make(batch):
        return np.repeat(np.asarray(batch, np.float32)[:, None], 1024, axis=1)

    run_stages([Stage("map", body)], tmp_path)
    file = tmp_path / "stages" / "map" / "out.npy"
    np.save(tmp_path / "whole.npy", np.load(file))
    assert file.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_no_items_make_an_empty_file(tmp_path):
    def body(context):
        assert context.map("out.jsonl", [], make_records, batch_size=4, unit="items") == []

    run_stages([Stage("map", body)], tmp_path)
    assert read_jsonl(tmp_path / "stages" / "map" / "out.jsonl") == []


def test_seconds_add_up_over_interruptions(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 100.0, 107.0])
    monkeypatch.setattr("rag_jax.pipeline.records.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("rag_jax.pipeline.records.compile_seconds", lambda: 0.0)

    def interrupt(context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([Stage("one", interrupt)], tmp_path)
    (record,) = run_stages([Stage("one", lambda context: None)], tmp_path)
    assert record["seconds"] == 12.0


def test_compiling_is_counted_once(tmp_path):
    def run(context):
        inner = jax.jit(lambda x: jnp.tanh(x) @ x)
        jax.jit(lambda x: inner(x) + inner(2 * x))(jnp.eye(4)).block_until_ready()

    (record,) = run_stages([Stage("compile", run)], tmp_path)
    assert 0 < record["compile_seconds"] <= record["seconds"]


def test_programs_add_up_over_interruptions(tmp_path):
    def prepare(context, stops):
        def named_program(x):
            return jnp.tanh(x) @ x

        for size in (3, 4):
            jax.jit(named_program)(jnp.eye(size)).block_until_ready()
        if stops:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages([Stage("one", partial(prepare, stops=True))], tmp_path)
    (record,) = run_stages([Stage("one", partial(prepare, stops=False))], tmp_path)
    costs = record["programs"]["named_program"]
    assert costs["compile_times"] + costs["read_times"] == 4
    assert costs["read_times"] >= 2  # what the first run compiled was kept
    programs = record["programs"].values()
    seconds = sum(costs["compile_seconds"] + costs["read_seconds"] for costs in programs)
    assert 0 < seconds <= record["compile_seconds"]


def test_the_peak_of_a_stage_is_its_own(tmp_path):
    sizes = {"small": 1, "large": 400_000_000, "after": 1}

    def run(context, size):
        np.ones(size, np.int8).sum()

    stages = [Stage(name, partial(run, size=size)) for name, size in sizes.items()]
    peaks = {record["name"]: record["peak_bytes"] for record in run_stages(stages, tmp_path)}
    assert peaks["large"] - peaks["small"] > 0.8 * sizes["large"]
    assert peaks["large"] - peaks["after"] > 0.8 * sizes["large"]
    (kept, *_) = run_stages(stages, tmp_path)
    assert kept["reused"] and kept["peak_bytes"] == peaks["small"]


def test_a_missing_record_of_a_batch_is_a_fault(tmp_path):
    def body(context):
        context.map("out.jsonl", ITEMS, lambda b: [{}], batch_size=4, unit="items")

    with pytest.raises(ValueError, match=r"out\.jsonl: 1 results for range\(0, 4\)"):
        run_stages([Stage("map", body)], tmp_path)
    assert not list((tmp_path / "stages" / "map").glob("out.*"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EROFS, "read-only file system; choose a folder that can be written with --workdir"),
        (errno.EACCES, "permission denied; choose a folder"),
    ],
)
@pytest.mark.parametrize("during", ["replace", "fsync"])
def test_an_unusable_disk_is_one_line(tmp_path, monkeypatch, code, message, during):
    def run(context):
        def fail(*_, **__):
            raise OSError(code, os.strerror(code), "the file")

        monkeypatch.setattr(f"rag_jax.runtime.files.os.{during}", fail)
        write_json(context.folder / "out", 1)

    with pytest.raises(RagJaxError) as caught:
        run_stages([Stage("one", run)], tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    left = {path.name for path in (tmp_path / "stages" / "one").iterdir()}
    assert left == {"started.json"}


def test_a_work_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    for workdir in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(RagJaxError, match="choose a folder with --workdir"):
            run_stages([], workdir)


def test_other_faults_keep_their_traceback(tmp_path):
    def run(context):
        open(context.folder / "absent").close()

    with pytest.raises(FileNotFoundError):
        run_stages([Stage("one", run)], tmp_path)


def test_two_processes_do_not_share_a_work_folder(tmp_path):
    program = """
        import sys
        from rag_jax.pipeline.runner import run_stages
        from rag_jax.pipeline.stage import Stage

        def run(context):
            print("running", flush=True)
            sys.stdin.read()

        run_stages([Stage("one", run)], sys.argv[1])
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"running\n"
        with pytest.raises(RagJaxError, match=f"in use by another run .process {other.pid}."):
            run_stages([], tmp_path)
        other.kill()
    # Its lock file is still there, and no longer in the way.
    (record,) = run_stages([Stage("one", lambda context: None)], tmp_path)
    assert not record["reused"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(RagJaxError, match="its file system has no locks .*choose .* with --workd"):
        run_stages([Stage("a", lambda context: None)], tmp_path / "run")


def test_a_file_that_may_not_grow_is_named(tmp_path):
    def grow(context):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a.jsonl")

    with pytest.raises(RagJaxError, match="cannot write a.jsonl: file too large; raise the limit"):
        run_stages([Stage("a", grow)], tmp_path / "run")


@pytest.mark.parametrize(
    ("layout", "shown"),
    [
        (None, "1"),
        ('{"layout": 1}', "1"),
        ('{"layout": 99}', "99"),
        ('{"lay', "unreadable"),
        ("{}", "unreadable"),
        ("[]", "unreadable"),
    ],
)
def test_a_folder_of_another_layout_is_refused(tmp_path, layout, shown):
    chain = Chain()
    run_stages(chain.stages(), tmp_path)
    file = tmp_path / "layout.json"
    assert read_json(file) == {"layout": LAYOUT} == {"layout": 2}
    file.unlink() if layout is None else file.write_text(layout)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = (
        f"{tmp_path}: the folder was made by another version of rag_jax (layout {shown}, this "
        f"version's is 2): choose another folder with --workdir, or delete {tmp_path} and rerun "
        "from the beginning"
    )
    calls = (
        lambda: run_stages(chain.stages(one=1), tmp_path, config={"seed": 1}),
        lambda: open_stages(chain.stages(), tmp_path, ["two"]),
    )
    for call in calls:
        with pytest.raises(RagJaxError) as caught:
            call()
        assert str(caught.value) == message
    # Nothing was touched.
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert chain.ran == ["one", "two", "other"]


@pytest.mark.parametrize("layout", [None, '{"layout": 1}', '{"lay'])
def test_a_folder_without_stages_has_no_layout_yet(tmp_path, layout):
    """It gets this version's, whatever an interrupted start left; other files are spared."""
    (tmp_path / "notes.txt").write_text("precious")
    if layout is not None:
        (tmp_path / "layout.json").write_text(layout)
    with pytest.raises(RagJaxError, match="there is no finished run; run launch/train.py with"):
        open_stages(Chain().stages(), tmp_path, ["two"])
    run_stages(Chain().stages(), tmp_path)
    assert read_json(tmp_path / "layout.json") == {"layout": LAYOUT}
    assert (tmp_path / "notes.txt").read_text() == "precious"
    open_stages(Chain().stages(), tmp_path, ["two"])


def test_open_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    write_json(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), open_atomic(tmp_path / "file") as file:
        file.write("new")
        raise RuntimeError
    assert read_json(tmp_path / "file") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_not_a_number_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "file", float("nan"))
    write_json(tmp_path / "file", {"a": np.float32(0.1), "b": jnp.arange(2)})
    assert read_json(tmp_path / "file") == {"a": float(np.float32(0.1)), "b": [0, 1]}


# Damage.


def damage(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {
        "removed": None,
        "cut": data[:middle],
        "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
    }[how]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)


@pytest.mark.parametrize("how", ["removed", "cut", "altered"])
def test_a_stage_with_a_damaged_file_is_named_and_made_again(tmp_path, capsys, how):
    ran = []

    def run(context):
        ran.append(context.name)
        (context.folder / "below").mkdir()
        write_json(context.folder / "below" / "out", list(range(9)))

    stages = [
        Stage("one", run),
        Stage("two", run, needs=("one",)),
        Stage("other", run),
    ]
    run_stages(stages, tmp_path)
    path = tmp_path / "stages" / "one" / "below" / "out"
    whole = path.read_bytes()
    damage(path, how)
    message = "below/out removed, cut short or altered"
    with pytest.raises(RagJaxError, match=f"stage one: {message}; run launch/train.py"):
        open_stages(stages, tmp_path, ["two"])
    open_stages(stages, tmp_path, ["other"])
    ran.clear()
    capsys.readouterr()
    run_stages(stages, tmp_path)
    assert ran == ["one", "two"]
    assert f"stage one: {message}, redoing" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_stage_that_repairs_is_called_on_what_is_there(tmp_path, capsys):
    made = []

    def run(context):
        for name in "abc":
            if not (context.folder / name).exists():
                made.append(name)
                write_json(context.folder / name, name)

    stages = [Stage("one", run, repairs=True), Stage("two", lambda context: None, needs=("one",))]
    run_stages(stages, tmp_path)
    for name in "bc":
        (tmp_path / "stages" / "one" / name).unlink()
    made.clear()
    records = run_stages(stages, tmp_path)
    assert made == ["b", "c"]
    assert (
        "stage one: b and 1 more removed, cut short or altered, repairing"
        in capsys.readouterr().err
    )
    assert [record["reused"] for record in records] == [False, True]
    assert [record["reused"] for record in run_stages(stages, tmp_path)] == [True, True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)]
)
def test_a_signal_that_python_lost_stops_before_the_next_batch(tmp_path, number, reason):
    class Thing:
        pass

    made = []

    def work(batch):
        made.append(batch)
        if len(made) == 2:
            thing = Thing()
            weakref.finalize(thing, signal.raise_signal, number)
            del thing  # what is raised here is ignored
        return make_records(batch)

    def run(context):
        context.map("out.jsonl", ITEMS, work, batch_size=4, unit="items")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.start("interrupted")
    try:
        with pytest.raises(reason):
            run_stages([Stage("map", run)], tmp_path)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signals._noted.clear()
    assert len(made) == 2
    pieces = sorted((tmp_path / "stages" / "map").glob("out.*"))
    assert [path.name for path in pieces] == ["out.0-4.jsonl", "out.4-8.jsonl"]
    assert sum(len(read_jsonl(path)) for path in pieces) == 8
