"""Headers that claim more than they hold are refused before anything reads on."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.models.io import gguf_header
from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.gguf_header import TensorPlace, read_header
from rag_jax.models.io.tensors import read_safetensors
from rag_jax.runtime.errors import RagJaxError

HUGE = 1 << 60


def text(value):
    return struct.pack("<Q", len(value)) + value


def header(*, tensors=0, entries=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


def entry(kind, value, name=b"key"):
    return text(name) + struct.pack("<I", kind) + value


def tensor(*shape, offset=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(b"weight") + sizes + struct.pack("<IQ", 0, offset)


HALF = struct.pack("<IQ", 0, 3_000_000) + bytes(3_000_000)  # of more items than there may be

GOOD = header(
    tensors=1,
    entries=5,
    rest=entry(4, struct.pack("<I", 7), b"a")
    + entry(8, text(b"value"), b"b")
    + entry(9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b"), b"c")
    + entry(9, struct.pack("<IQ2f", 6, 2, 1.5, -2), b"d")
    + entry(7, b"\1", b"e")
    + tensor(4, 2),
)


def test_a_good_header(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(GOOD)
    metadata, places = read_header(path)
    assert metadata == {"a": 7, "b": "value", "c": ["a", "b"], "d": [1.5, -2.0], "e": True}
    start = -(-len(GOOD) // 32) * 32
    assert places == [TensorPlace("weight", (2, 4), 0, start)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not start with GGUF"),
        (b"GGUF", "runs past the end of the file"),
        (header(tensors=HUGE), "declares 1152921504606846976 tensors"),
        (header(entries=HUGE), "declares 1152921504606846976 metadata entries"),
        (header(entries=2), "runs past the end of the file"),
        (header(entries=1, rest=struct.pack("<Q", HUGE)), "larger than 256 MiB"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 0, HUGE))), "the limit is 4194304"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 8, HUGE))), "the limit is 4194304"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 8, 1 << 20))), "past the end"),
        (header(entries=2, rest=entry(9, HALF) + entry(9, HALF, b"b")), "have 6000000 items"),
        (header(tensors=1, rest=tensor(1 << 32, 1 << 32)), "of 18446744073709551616 weights"),
        (header(tensors=1, rest=tensor(4, offset=1 << 40)), "begins at byte 1099511627776"),
        (header(entries=1, rest=entry(9, struct.pack("<IQ", 9, 1))), "the unknown type 9"),
        (header(entries=1, rest=entry(13, b"")), "the unknown type 13"),
        (header(entries=2, rest=2 * entry(7, b"\1")), "the metadata entry 'key' comes twice"),
        (header(tensors=2, rest=2 * tensor(4)), "a tensor's name comes twice"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "the version is 1, not 2 or 3"),
        (header(tensors=1, rest=text(b"w") + struct.pack("<I", 5)), "has 5 dimensions"),
    ],
)
def test_headers_out_of_bounds(tmp_path, data, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(RagJaxError, match=f"a.gguf is truncated or not a GGUF file: .*{message}"):
        read_gguf(path)


@settings(max_examples=30)
@given(at=st.integers(4, len(GOOD) - 1), data=st.binary(min_size=1, max_size=8))
def test_any_damage_ends(tmp_path_factory, at, data):
    """Whatever a header says, walking through it ends, and so does reading it."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(GOOD[:at] + data + GOOD[at + len(data) :])
    with pytest.raises(RagJaxError):  # at least the architecture is missing
        read_gguf(path)


def test_a_header_larger_than_any_models(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "_BYTES", len(GOOD) - 1)
    (tmp_path / "a.gguf").write_bytes(GOOD)
    with pytest.raises(ValueError, match="the header is larger than"):
        read_header(tmp_path / "a.gguf")


@pytest.mark.parametrize("size", [(16 << 20) + 1, 90_000_000, HUGE])
def test_a_safetensors_header_larger_than_any_models(tmp_path, size):
    """The library itself has a limit of a hundred million bytes, for which it takes 12 seconds."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(RagJaxError, match=r"not a .* its header has [\d,]+ bytes, the limit"):
        read_safetensors([path])
