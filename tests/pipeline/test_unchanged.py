"""Files of finished stages: which are read at a start, and that no change goes unseen."""

import os
import shutil
from pathlib import Path

import pytest

from rag_jax.pipeline import unchanged
from rag_jax.pipeline.records import ENDED, describe, find_damage, find_record
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.files import read_json, sum_file, write_json

COUNT = 40


def write_files(context):
    """Many small files, all but one of them older than a moment."""
    for i in range(COUNT):
        path = context.folder / f"part/{i}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([i]) * 100)
        if i:
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**10))


STAGE = Stage("many", write_files)


@pytest.fixture
def reads(monkeypatch):
    """The files that were read for their checksums."""
    read = []
    monkeypatch.setattr(
        unchanged, "sum_file", lambda path: read.append(path.name) or sum_file(path)
    )
    return read


@pytest.fixture
def folder(tmp_path):
    run_stages([STAGE], tmp_path / "run")
    return tmp_path / "run/stages/many"


def find(folder):
    record, reason = find_record(folder, describe(STAGE, {}), {}, repairs=False)
    return bool(record), reason


def alter(path: Path, *, keep_time: bool):
    before, data = path.stat(), bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_start_reads_only_files_written_in_the_last_moment(folder, reads):
    assert find(folder) == (True, "") and reads == ["0.bin"]


@pytest.mark.parametrize("number", [0, 7])
def test_a_changed_byte_is_found_by_its_time(folder, reads, number):
    alter(folder / f"part/{number}.bin", keep_time=False)
    assert find(folder) == (False, f"part/{number}.bin removed, cut short or altered")
    assert len(reads) == COUNT


def test_a_young_file_is_read_whatever_its_time_says(folder):
    alter(folder / "part/0.bin", keep_time=True)
    assert find(folder)[1] == "part/0.bin removed, cut short or altered"


def test_what_no_time_shows_is_found_on_demand(folder, reads, monkeypatch):
    alter(folder / "part/7.bin", keep_time=True)
    assert find(folder) == (True, "")
    monkeypatch.setenv(unchanged.VERIFY, "1")
    assert find(folder) == (False, "part/7.bin removed, cut short or altered")


def test_missing_files_and_folders_in_their_place(folder):
    (folder / "part/3.bin").unlink()
    (folder / "part/5.bin").unlink()
    (folder / "part/5.bin").mkdir()
    assert find(folder)[1] == "part/3.bin and 1 more removed, cut short or altered"


def test_a_copy_with_other_times_and_a_record_of_before_are_compared_whole(folder, reads, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert find(copy) == (True, "") and len(reads) == COUNT
    record = read_json(folder / ENDED)
    write_json(folder / ENDED, {name: record[name] for name in record if name != "seen"})
    assert find_damage(folder, read_json(folder / ENDED)) == "" and len(reads) == 2 * COUNT
