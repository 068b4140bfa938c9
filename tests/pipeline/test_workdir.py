"""Work folders with odd names, where none can be, and one that is removed during the run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import at_most

from rag_jax.commands import build_index
from rag_jax.pipeline import command
from rag_jax.pipeline.records import ENDED, LAYOUT
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.checkpoint import load_tree, save_tree
from rag_jax.runtime.errors import RagJaxError

NAMES = [
    *("a b", " ", "\t", "new\nline", "trail/", "-lead", "--flag=x", "x" * 255, "50%", "%s{}", "*"),
    *("?", "{a,b}", "~user", "'q'", '"d"', "emoji\U0001f5fc", "\u6771\u4eac", "e\u0301", "\u202e"),
    *("a:b", "file:x", "$HOME;&|", "<x>(y)!#@", "...", "a//b/../c"),
]
TREE = {"a": np.arange(3.0)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(context):
    save_tree(context.folder / "tree", TREE)
    work = lambda batch: [{"item": item} for item in batch]  # noqa: E731
    context.map("out.jsonl", range(4), work, batch_size=2, unit="items")


def test_any_name_will_do(here):
    for name in NAMES:
        run_stages([Stage("one", make)], name)
        (record,) = run_stages([Stage("one", make)], name)
        assert record["reused"]
        loaded = load_tree(Path(name) / "stages" / "one" / "tree", TREE)
        np.testing.assert_array_equal(loaded["a"], TREE["a"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs://bucket/x", "/gs:/bucket/x: has a gs: in its name, .* choose another folder with"),
        ("ags:", "ags:: has a gs: in its name"),
        ("[x]", r"has a \[ in its name"),
        ("a\\b", r"has a \\ in its name"),
        ("\udcff", "has bytes that are no UTF-8 in its name"),
        ("x" * 256, "cannot write x*: file name too long; choose a folder with --workdir"),
        ("/proc/x", "cannot write /proc/x: no folder can be made there; choose a folder with"),
        ("/dev/null/x", "cannot write /dev/null/x: not a directory; choose a folder with"),
        ("loop", "cannot write loop: file exists; choose a folder with --workdir"),
        ("loop/x", "cannot write loop/x: too many levels of symbolic links; choose a folder with"),
    ],
)
def test_where_no_folder_can_be(here, name, message):
    Path("loop").symlink_to("loop")
    with pytest.raises(RagJaxError, match=message) as caught:
        run_stages([Stage("one", make)], name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_a_folder_that_is_removed_during_the_run(here, again):
    def remove(context):
        shutil.rmtree("run")
        if again:
            Path("run").mkdir()

    def save(context):
        remove(context)
        save_tree(context.folder / "tree", TREE)

    def map_items(context):
        work = lambda batch: remove(context) or [{"item": item} for item in batch]  # noqa: E731
        context.map("out.jsonl", range(4), work, batch_size=2, unit="items")

    for body in (remove, save, map_items):
        with pytest.raises(RagJaxError) as caught:
            run_stages([Stage("one", body), Stage("two", make, needs=("one",))], "run")
        advice = "run the same command again, which begins anew"
        assert str(caught.value) == f"run: was removed during the run; {advice}"
        shutil.rmtree("run", ignore_errors=True)
    run_stages([Stage("one", make)], "run")


def test_errors_in_a_folder_that_is_there_stay_what_they_are(here):
    def fail(context):
        (context.folder / "none").read_text()

    with pytest.raises(FileNotFoundError):
        run_stages([Stage("one", fail)], "run")


@pytest.mark.parametrize("value", ["", " "])
def test_a_blank_path_on_the_command_line_is_refused(here, value):
    refused = f"--workdir={value}: is blank; name a path, or leave the flag out"
    with pytest.raises(RagJaxError, match=refused):
        command.find_workdir(["--config=rag"], {"workdir": value})
    with pytest.raises(RagJaxError, match=refused):
        build_index.main(["passages.jsonl", f"--workdir={value}"])
    assert list(here.iterdir()) == []


def put_fifo(path):
    os.mkfifo(path)


def put_link_out(path):
    path.with_name("elsewhere").mkdir()
    (path.with_name("elsewhere") / "kept").write_text("")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("put", [put_fifo, put_link_out, Path.write_text, Path.mkdir])
def test_something_else_in_a_stages_place_is_replaced(here, put):
    """Without opening it, which would wait for ever, and without a look at what it leads to."""
    place = Path("run/stages/one")
    place.parent.mkdir(parents=True)
    Path("run/layout.json").write_text(f'{{"layout": {LAYOUT}}}')
    put(place, *[""][: put is Path.write_text])
    with at_most(30):
        (record,) = run_stages([Stage("one", make)], "run")
    assert not record["reused"] and place.is_dir() and not place.is_symlink()
    if put is put_link_out:
        assert (place.with_name("elsewhere") / "kept").exists()


@pytest.mark.parametrize(
    ("name", "put", "message"),
    [
        (".lock", put_fifo, r"run/\.lock is a named pipe in the place of a file: remove it$"),
        (".lock", Path.mkdir, r"run/\.lock is a folder in the place of a file: remove it$"),
        ("config.json", Path.mkdir, r"cannot write run/config\.json: is a directory; choose"),
    ],
)
def test_something_else_in_a_files_place(here, name, put, message):
    Path("run").mkdir()
    put(Path("run") / name)
    with at_most(30), pytest.raises(RagJaxError, match=message):
        run_stages([Stage("one", make)], "run")


@pytest.mark.parametrize("value", ["1e400", "-1", "NaN", "1" + "0" * 400, '"a"', "null", "[]"])
@pytest.mark.parametrize("name", ["seconds", "compile_seconds", "peak_bytes"])
def test_a_record_with_numbers_that_cannot_be_is_no_record(here, name, value):
    run_stages([Stage("one", make)], "run")
    (path,) = Path("run/stages/one").glob(ENDED)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {name: "\0"}).replace(r'"\u0000"', value))
    (made,) = run_stages([Stage("one", make)], "run")
    assert not made["reused"]


_COSTS = {"compile_times": 1, "compile_seconds": 0.5, "read_times": 0, "read_seconds": 0}


@pytest.mark.parametrize(
    ("programs", "kept"),
    [
        ({"step": _COSTS}, True),
        ({"step": _COSTS | {"read_seconds": -1}}, False),
        ({"step": _COSTS | {"read_times": "0"}}, False),
        ({"step": {"compile_times": 1}}, False),
        ({"step": 3}, False),
        ([], False),
    ],
)
def test_a_record_of_programs_is_read_or_is_no_record(here, programs, kept):
    run_stages([Stage("one", make)], "run")
    (path,) = Path("run/stages/one").glob(ENDED)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"programs": programs}))
    (made,) = run_stages([Stage("one", make)], "run")
    assert made["reused"] == kept
