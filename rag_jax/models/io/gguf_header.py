"""The limits of a GGUF file's header, checked before anything else reads the file.

The reader in the `gguf` package goes on beyond the end of a file for as long as a count in its
header says, and keeps what it did not find.
"""

import mmap
import struct
from pathlib import Path

_MAGIC = b"GGUF"
_ENTRIES = 1 << 16  # metadata, and tensors
_BYTES = 1 << 28  # of the whole header, whose vocabulary takes most
_DIMENSIONS = 4  # GGML has no more
_STRING, _ARRAY = 8, 9  # types of values; those of scalars have these sizes
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_header(path: Path) -> None:
    """Walks through a header without keeping any of it.

    Raises:
        ValueError: it is no header, ends beyond the file, or is larger than a model's can be.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError("it does not begin as one")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).check()


class _Walk:
    """A place in a header, which moves on as it is read."""

    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 4
        swapped = struct.unpack_from("<I", data, 4)[0] & 0xFFFF == 0 if len(data) >= 8 else False
        self._order = ">" if swapped else "<"

    def check(self) -> None:
        self._read("I")  # the version, which the reader checks
        tensors, entries = self._read("Q"), self._read("Q")
        for name, count in (("tensors", tensors), ("metadata entries", entries)):
            if count > _ENTRIES:
                raise ValueError(f"it tells of {count} {name}, and may have {_ENTRIES}")
        for _ in range(entries):
            self._skip_text()
            self._skip_value(self._read("I"))
        for _ in range(tensors):
            self._skip_text()
            dimensions = self._read("I")
            if dimensions > _DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions, and may have 4")
            self._skip(8 * dimensions + 4 + 8)

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_text()
        elif kind == _ARRAY:
            inner, count = self._read("I"), self._read("Q")
            if inner == _STRING:
                for _ in range(count):
                    self._skip_text()
            else:
                self._skip(count * self._size(inner))
        else:
            self._skip(self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a value is of the unknown type {kind}")
        return _SIZES[kind]

    def _skip_text(self) -> None:
        self._skip(self._read("Q"))

    def _read(self, kind: str) -> int:
        start, size = self._at, struct.calcsize(kind)
        self._skip(size)
        return struct.unpack_from(f"{self._order}{kind}", self._data, start)[0]

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > _BYTES:
            raise ValueError(f"its header has more than {_BYTES >> 20} MiB")
        if self._at > len(self._data):
            raise ValueError("its header goes on beyond its end")
