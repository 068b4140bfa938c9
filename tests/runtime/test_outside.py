"""The wall around files that others made: what passes through it, and what becomes one line."""

import io
import os
import socket

import pytest

from rag_jax.runtime import files, outside
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import list_lines, read_json, read_lines
from rag_jax.runtime.outside import parsing, require_file, require_files, show


class PanicError(BaseException):
    """As a panic of a Rust library, which is no Exception."""


PanicError.__module__ = "pyo3_runtime"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\nlines"), "two lines"),
        (KeyError("a"), "KeyError: 'a'"),
        (RecursionError("too deep"), "too deep"),
        (MemoryError(), "MemoryError"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (PanicError("index out of bounds"), "index out of bounds"),
        (ValueError("a" * 1000), "a" * 300 + "..."),
    ],
)
def test_any_error_becomes_a_line_and_stays_the_cause(error, reason):
    with pytest.raises(RagJaxError) as caught, parsing("a.json", "is odd", "fetch it again"):
        raise error
    assert str(caught.value) == f"a.json is odd: {reason}; fetch it again"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Preempted, SystemExit, GeneratorExit])
def test_stops_pass(kind):
    with pytest.raises(kind), parsing("a.json"):
        raise kind


def test_errors_of_the_library_pass():
    error = RagJaxError("b.json: n must be positive")
    with pytest.raises(RagJaxError) as caught, parsing("a.json"):
        raise error
    assert caught.value is error


def test_a_message_is_one_line():
    assert str(RagJaxError("a\nname: is missing\r\n")) == "a name: is missing"
    assert len(str(RagJaxError("a" * 10**6))) < 6000


def test_values_in_messages():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert show("a\nb") == r"'a\nb'"
    assert show(10**5000) == "what is too large to show"
    assert show(nested) == "what is too large to show"
    assert len(show("a" * 10**6)) == 303


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(RagJaxError, match="^socket is a socket in the place of a file: mend"):
            require_file("socket", "mend it")
    os.mkfifo("pipe")
    with pytest.raises(RagJaxError, match="^pipe is a named pipe in the place of a file$"):
        require_file("pipe")
    with pytest.raises(RagJaxError, match="pipe is a named pipe"):
        read_lines(tmp_path / "pipe")
    with pytest.raises(RagJaxError, match="^a.b cannot be read: .*embedded null"):
        require_file("a\0b")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    require_file("link")


def test_a_folder_for_a_library(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("")
    require_files(tmp_path)
    (tmp_path / "sub" / "link").symlink_to(tmp_path)
    with pytest.raises(RagJaxError, match="link is a folder in the place of a file"):
        require_files(tmp_path)
    with pytest.raises(RagJaxError, match="none is missing"):
        require_files(tmp_path / "none")


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    require_file(tmp_path / "a", largest=5)
    with pytest.raises(RagJaxError, match=r"/a has 5 bytes, more than the limit of 4: fetch it$"):
        require_file(tmp_path / "a", "fetch it", largest=4)
    with pytest.raises(RagJaxError, match="more than the limit of 4$"):
        read_json(tmp_path / "a", largest=4)


def test_a_folder_has_a_most_of_files(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text("")
    monkeypatch.setattr(outside, "_MOST_FILES", 3)
    require_files(tmp_path)
    monkeypatch.setattr(outside, "_MOST_FILES", 2)
    with pytest.raises(RagJaxError, match="holds more than 2 files and folders"):
        require_files(tmp_path)


def test_a_line_has_a_largest_length(monkeypatch):
    monkeypatch.setattr(files, "_LONGEST_LINE", 1 << 20)
    text = "a\n" + "b" * ((1 << 20) - 2) + "\nc"
    assert [len(line) for line in list_lines(io.StringIO(text))] == [2, (1 << 20) - 1, 1]
    with pytest.raises(ValueError, match="a line is longer than 1 MiB"):
        list(list_lines(io.BytesIO(b"a\n" + b"b" * (1 << 20))))
