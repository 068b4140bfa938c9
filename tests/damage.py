"""Damage to files: bytes that change, and JSON values that become others."""

import json
import os
import signal
from contextlib import contextmanager

from hypothesis import strategies as st

from rag_jax.runtime.errors import RagJaxError

# JSON texts that stand where a file has another value.
WILD = (
    "null",
    "true",
    "-1",
    "0",
    "1",
    "2.5",
    "4294967296",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "1e38",
    "1e400",
    "-1e400",
    "NaN",
    '""',
    '"a"',
    '"../a"',
    '"/dev/zero"',
    r'"\ud800"',
    r'"a\nb\u0000"',
    '"' + "a" * 10_000 + '"',
    "[]",
    "[1]",
    "[[]]",
    '[""]',
    "{}",
    '{"a": 1}',
    "[" * 400 + "]" * 400,
    "[" * 100_000,
)
_MARK = "\0damage"


def list_places(value, path=()):
    """The paths of all values of a JSON value, and of the value itself."""
    yield path
    is_list = isinstance(value, list)
    children = dict(enumerate(value)) if is_list else value if isinstance(value, dict) else {}
    for key, child in children.items():
        yield from list_places(child, (*path, key))


@st.composite
def damage_json(draw, text):
    """A JSON text in which one value is another, or is gone."""
    value = json.loads(text)
    path, wild = draw(st.sampled_from(list(list_places(value)))), draw(st.sampled_from(WILD))
    if not path:
        return wild.encode()
    place = value
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, dict) and draw(st.integers(0, 7)) == 0:
        del place[path[-1]]
    else:
        place[path[-1]] = _MARK
    return json.dumps(value).replace(json.dumps(_MARK), wild).encode()


@st.composite
def damage_bytes(draw, data, most=None):
    """Bytes of which some are others, or the end is gone; only the first `most` become others."""
    at = draw(st.integers(0, min(len(data), most or len(data)) - 1))
    new = draw(st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" * 4]))
    rest = draw(st.sampled_from([data[at + len(new) :], data[at:], b""]))
    return data[:at] + new + rest


def refuses_in_a_line(load):
    """Whether `load` raises a RagJaxError, which must be one line; any other error is one."""
    try:
        load()
    except RagJaxError as error:
        assert "\n" not in str(error) and len(str(error)) <= 5003
        return True
    return False


# What may be in the place of a file.
ODD_FILES = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a named pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing in it": lambda path: path.write_bytes(b""),
}


@contextmanager
def at_most(seconds):
    """Fails if the block waits for ever, as opening a named pipe does."""

    def fail(*_):
        raise AssertionError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
