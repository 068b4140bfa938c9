"""A process that is killed while it swaps or removes a stage: the same command goes on."""

import os
import shutil
from pathlib import Path

import pytest

from rag_jax.pipeline import records
from rag_jax.pipeline.runner import open_stages, run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.files import read_json, write_json

POINTS = 40  # more changes of the disk than a swap takes


class Killed(BaseException):
    """The end of a process: after it nothing changes on the disk, whatever handles the error."""


def list_stages(value, ran):
    def run(context):
        ran.append(value)
        for name in "abc":
            write_json(context.folder / name, value)

    return [Stage("one", run, {"x": value})]


def kill(monkeypatch, point):
    """Ends the process before the change of the disk with a number; half of a tree is removed."""
    changes = 0

    def count(change):
        def counted(path, *args, **options):
            nonlocal changes
            changes += 1
            if changes > point:
                if change is remove and changes == point + 1:
                    for name in sorted(os.listdir(path))[::2]:
                        if (Path(path) / name).is_file():
                            os.unlink(Path(path) / name)
                raise Killed
            return change(path, *args, **options)

        return counted

    remove = shutil.rmtree
    monkeypatch.setattr(records.shutil, "rmtree", count(remove))
    for name in ("rename", "unlink", "mkdir"):
        monkeypatch.setattr(Path, name, count(getattr(Path, name)))
    monkeypatch.setattr(os, "replace", count(os.replace))


def try_stages(monkeypatch, stages, workdir, point, **options):
    """Runs stages up to the point of a kill; whether the run came to its end."""
    with monkeypatch.context() as patched:
        kill(patched, point)
        try:
            run_stages(stages, workdir, **options)
        except Killed:
            return False
    return True


def check_end(workdir, value):
    ran = []
    run_stages(list_stages(value, ran), workdir)
    assert os.listdir(workdir / "stages") == ["one"]
    context = open_stages(list_stages(value, ran), workdir, ("one",))
    assert [read_json(context.path("one", name)) for name in "abc"] == [value] * 3
    return ran


@pytest.mark.parametrize("value", [2, 1])
def test_a_kill_at_each_point_of_a_swap(tmp_path, monkeypatch, value):
    """The same command ends with what it makes, and one with the old settings finds the old one."""
    for point in range(POINTS):
        workdir = tmp_path / str(point)
        run_stages(list_stages(1, []), workdir)
        ended = try_stages(monkeypatch, list_stages(2, []), workdir, point)
        place, made = workdir / "stages" / "one", ended or (workdir / "stages/one/a").exists()
        swapped = made and read_json(place / "a") == 2
        draft = workdir / "stages" / ".one.draft"
        kept = swapped or (draft / records.ENDED).exists() if value == 2 else not swapped
        ran = check_end(workdir, value)
        assert ran == ([] if kept else [value]), point
        if ended:
            break
    else:
        pytest.fail(f"a swap takes more than {POINTS} changes of the disk")


def test_a_kill_at_each_point_of_taking_a_stage_over(tmp_path, monkeypatch):
    """A stage that is replaced by a copy of another folder's is removed first."""
    other = tmp_path / "other"
    run_stages(list_stages(2, []), other)
    for point in range(POINTS):
        workdir = tmp_path / str(point)
        run_stages(list_stages(1, []), workdir)
        ended = try_stages(monkeypatch, list_stages(2, []), workdir, point, reuse=other)
        check_end(workdir, 2)
        if ended:
            break
    else:
        pytest.fail(f"a copy takes more than {POINTS} changes of the disk")


def test_a_stage_without_a_record_is_not_put_back(tmp_path):
    """What is left of a stage that was being removed is no stage."""
    place, old = tmp_path / "one", tmp_path / ".one.old"
    for folder in (old, tmp_path / ".one.draft", tmp_path / ".one.draft.old"):
        folder.mkdir()
    (old / "a").write_text("1")
    records.recover(place)
    assert os.listdir(tmp_path) == [".one.draft"]
