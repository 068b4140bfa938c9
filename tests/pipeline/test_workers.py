"""Workers without Ray: what they open and make, and what they must find as the driver does."""

import os
from dataclasses import replace

import pytest
from divided import ITEMS, PIECES, make_opener, read_notes, read_results, run
from in_process import InProcess

from rag_jax.pipeline import workers
from rag_jax.pipeline.maps import ResumableMap
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.pipeline.workers import MapTask, Worker, describe_map, wait_for
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.hosts import is_first, only_reading


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Workers enter the driver's folder, and wait for files for a moment only."""
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(workers, "keep_programs", lambda: None)
    monkeypatch.setattr(workers, "_SEEN_WITHIN", 0.2)


def test_workers_make_what_one_process_makes(tmp_path):
    run(tmp_path / "one", make_opener(tmp_path / "alone"))
    executor, opener = InProcess(), make_opener(tmp_path / "notes")
    made = run(tmp_path / "run", opener, executor)
    assert read_results(tmp_path / "run") == read_results(tmp_path / "one")
    assert [task.file for task in executor.tasks] == ["out.jsonl", "out.npy"]
    # The driver and each worker opened the run once, for both maps.
    assert len(read_notes(tmp_path / "notes", "opened")) == 3
    assert len(read_notes(tmp_path / "notes", "made")) == 2 * PIECES
    assert run(tmp_path / "run", opener, executor) == [r | {"reused": True} for r in made]
    assert len(executor.tasks) == 2


def test_a_worker_opens_another_run_in_place_of_the_first(tmp_path):
    executor = InProcess()
    for name in ("a", "b", "a"):
        run(tmp_path / f"run-{len(executor.tasks)}", make_opener(tmp_path / name), executor)
    assert [len(read_notes(tmp_path / name, "opened")) for name in "ab"] == [2 + 4, 1 + 2]
    results = [read_results(tmp_path / f"run-{number}") for number in (0, 2, 4)]
    assert results[0] == results[1] == results[2]


def make_task(tmp_path, **changes):
    """A task of a stage that has begun in the work folder, and what the driver has of it."""
    opener = make_opener(tmp_path / "notes")
    stage = opener.function(**opener.arguments)[1][1]
    folder = tmp_path / "run" / "stages" / "both"
    folder.mkdir(parents=True)
    (folder.parent / "first").mkdir()
    write_json(folder.parent / "first" / "factor", 3)
    write_json(folder / "started.json", {"run": "1234"})
    mapped = ResumableMap(folder / "out.jsonl", ITEMS, 2)
    return opener, stage, mapped, replace(MapTask.of(stage, mapped, folder.parent), **changes)


def test_what_a_worker_has_in_common_with_the_driver(tmp_path, monkeypatch):
    opener, stage, mapped, task = make_task(tmp_path)
    wanted = describe_map(stage, mapped)
    assert Worker().open(opener, task) == wanted

    def find_changed():
        found = Worker().open(opener, task)
        return [name for name, value in wanted.items() if found[name] != value]

    (tmp_path / "notes" / "weights").write_text("others")
    assert find_changed() == ["the stage's settings, data or weights"]
    write_json(mapped.path.parent / "started.json", {"run": "5678"})
    assert find_changed() == ["the stage's settings, data or weights", "the work folder"]
    monkeypatch.setattr(workers, "hash_source", lambda: "0")
    assert find_changed()[0] == "the source of rag_jax"
    assert describe_map(stage, replace(mapped, batch_size=3)).keys() == wanted.keys()


def test_the_source_is_all_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(workers.rag_jax, "__file__", str(tmp_path / "__init__.py"))
    sums = []
    for name, text in (("__init__.py", ""), ("a.py", "x"), ("b.py", "x"), ("a.py", "y")):
        (tmp_path / name).write_text(text)
        sums.append(workers.hash_source.__wrapped__())
    (tmp_path / "a.pyc").write_text("not a source")
    assert workers.hash_source.__wrapped__() == sums[-1]
    assert len(set(sums)) == 4


def test_faults_of_a_worker_take_one_line(tmp_path):
    opener, _, _, task = make_task(tmp_path)
    for changes, message in (
        ({"cwd": tmp_path / "gone"}, f"{tmp_path}/gone: cannot be entered (No such file or direct"),
        ({"folder": tmp_path}, f"{tmp_path}/started.json: written by another process of the run,"),
        ({"file": "out.npy"}, f"{task.folder}/out.jsonl: written by another process of the run"),
    ):
        with pytest.raises(RagJaxError) as caught:
            Worker().open(opener, replace(task, **changes))
        assert str(caught.value).startswith(message)


def test_a_map_that_the_stage_does_not_have(tmp_path):
    opener = make_opener(tmp_path / "notes")
    run(tmp_path / "run", opener)
    stages = tmp_path / "run" / "stages"
    task = MapTask("both", "x.jsonl", stages / "both", stages, tmp_path)
    with pytest.raises(ValueError, match="stage both does not map x.jsonl"):
        Worker().open(opener, task)


def test_a_file_of_another_machine_is_waited_for(tmp_path, monkeypatch):
    naps = []

    def nap(seconds):
        naps.append(seconds)
        (tmp_path / "file").touch()

    monkeypatch.setattr(workers.time, "sleep", nap)
    wait_for(tmp_path / "file")
    wait_for(tmp_path / "file")
    assert len(naps) == 1


def test_only_reading(tmp_path, capsys):
    with only_reading():
        assert not is_first()
        write_json(tmp_path / "file", 1)
    assert is_first() and list(tmp_path.iterdir()) == []
    write_json(tmp_path / "file", 2)
    assert read_json(tmp_path / "file") == 2


def test_a_stage_is_not_divided_without_a_declaration(tmp_path):
    def only(context):
        context.map("out.jsonl", ITEMS, lambda batch: batch, batch_size=2, unit="items")

    def divide(*inputs):
        raise AssertionError

    run_stages([Stage("only", only)], tmp_path, divide=divide)
