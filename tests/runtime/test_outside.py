"""The wall around files that others made: what passes through it, and what becomes one line."""

import os
import socket

import pytest

from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import read_lines
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
    with pytest.raises(RagJaxError, match=r"^a.b cannot be read: embedded null byte$"):
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
