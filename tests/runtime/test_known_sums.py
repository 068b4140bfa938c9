"""Remembered checksums: what is read again, and what no note may hide."""

import hashlib
import os

import pytest

from rag_jax.runtime import known_sums
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.known_sums import hash_known


@pytest.fixture
def read(monkeypatch):
    """The files that are read, in order."""
    files = []
    monkeypatch.setattr(known_sums, "_SMALL", 4)
    monkeypatch.setattr(known_sums, "MOMENT", 0)  # so that a file is old at once
    whole = known_sums.hash_file
    monkeypatch.setattr(known_sums, "hash_file", lambda path: files.append(path) or whole(path))
    return files


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def sum_content(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once(weights, tmp_path, read):
    notes = tmp_path / "deep" / "notes"
    assert [hash_known(weights, notes) for _ in range(3)] == [sum_content(weights)] * 3
    assert read == [weights] and len([*notes.iterdir()]) == 1
    weights.with_name("small.bin").write_bytes(b"abc")
    for _ in range(2):
        hash_known(weights.with_name("small.bin"), notes)
    assert len(read) == 3 and len([*notes.iterdir()]) == 1


def test_a_changed_file_is_read_again(weights, tmp_path, read):
    """Also one with its size and its time put back, one in its place, and a copy."""
    notes, before = tmp_path / "notes", weights.stat()
    hash_known(weights, notes)
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_known(weights, notes) == sum_content(weights)
    other = tmp_path / "other.bin"
    other.write_bytes(b"altered")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(weights)
    assert hash_known(weights, notes) == sum_content(weights)
    assert read == [weights] * 3
    hash_known(weights, notes)
    assert read == [weights] * 3


def test_a_young_file_is_not_noted(weights, tmp_path, read, monkeypatch):
    monkeypatch.setattr(known_sums, "MOMENT", 3_600_000_000_000)
    for _ in range(2):
        hash_known(weights, tmp_path / "notes")
    assert read == [weights] * 2 and not (tmp_path / "notes").exists()


def test_on_demand_every_file_is_read(weights, tmp_path, read, monkeypatch):
    hash_known(weights, tmp_path)
    monkeypatch.setenv(known_sums.VERIFY, "1")
    hash_known(weights, tmp_path)
    assert read == [weights] * 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seen": 1}', '{"seen": [], "sha256": "0"}'])
def test_a_damaged_note_is_passed_over(weights, tmp_path, read, content):
    notes = tmp_path / "notes"
    hash_known(weights, notes)
    (note,) = notes.iterdir()
    note.write_text(content)
    assert hash_known(weights, notes) == sum_content(weights)
    hash_known(weights, notes)
    assert read == [weights] * 2  # the note is written anew


def test_notes_that_cannot_be_written(weights, read):
    notes = weights.with_name("file")
    notes.write_text("")
    assert hash_known(weights, notes) == sum_content(weights)


def test_what_is_no_file(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RagJaxError, match="pipe is a named pipe in the place of a file"):
        hash_known(tmp_path / "pipe", tmp_path)
