"""Bounds check of a GGUF file's header, before the `gguf` package reads the file.

The reader in the `gguf` package trusts the counts in the header: a damaged count makes the reader
run past the end of the file and fill the memory with empty entries.
"""

import math
import mmap
import struct
from pathlib import Path

_MAGIC = b"GGUF"
_ENTRIES = 1 << 16  # largest number of metadata entries, and of tensors
# Largest number of items of all arrays, for each of which the reader makes objects, in some twenty
# microseconds and a kilobyte. Llama 3's vocabulary of 128,256 tokens has half a million: texts,
# types and merges.
_ITEMS = 1 << 20
_WEIGHTS_PER_BYTE = 8  # the densest quantisation takes more than a bit a weight
_BYTES = 1 << 28  # largest header, in bytes; most of a header is the vocabulary
_DIMENSIONS = 4  # largest rank of a GGML tensor
_STRING, _ARRAY = 8, 9  # value types of variable size
# Sizes in bytes of the scalar value types.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_header(path: Path) -> None:
    """Scans the header of a GGUF file from start to end, in constant memory.

    What it lets pass, the reader reads in time and memory that are bounded by this module's limits.

    Raises:
        ValueError: there is no GGUF header, or the header exceeds the file or this module's limits.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"the file does not start with {_MAGIC.decode()}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _HeaderScanner(data).scan()


class _HeaderScanner:
    """A cursor over a header that checks every field before moving past the field."""

    def __init__(self, data: mmap.mmap):
        self._data, self._offset, self._items = data, len(_MAGIC), 0
        # The version is a small number, so zero low bytes mean the other byte order.
        swapped = struct.unpack_from("<I", data, 4)[0] & 0xFFFF == 0 if len(data) >= 8 else False
        self._order = ">" if swapped else "<"

    def scan(self) -> None:
        self._read("I")  # the version, which the `gguf` package checks
        tensors, entries = self._read("Q"), self._read("Q")
        for name, count in (("tensors", tensors), ("metadata entries", entries)):
            if count > _ENTRIES:
                raise ValueError(f"the header declares {count} {name}, the limit is {_ENTRIES}")
        for _ in range(entries):
            self._skip_text()
            self._skip_value(self._read("I"))
        for _ in range(tensors):
            self._skip_text()
            dimensions = self._read("I")
            if dimensions > _DIMENSIONS:
                raise ValueError(
                    f"a tensor has {dimensions} dimensions, the limit is {_DIMENSIONS}"
                )
            weights = math.prod(self._read("Q") for _ in range(dimensions))
            self._skip(4)  # the type
            offset = self._read("Q")
            if max(weights // _WEIGHTS_PER_BYTE, offset) > len(self._data):
                raise ValueError(
                    f"a tensor of {weights} weights begins at byte {offset} of the data, but the "
                    f"file has {len(self._data)} bytes"
                )

    def _skip_value(self, kind: int) -> None:
        count = 1
        if kind == _ARRAY:
            kind, count = self._read("I"), self._read("Q")
            self._items += count
            if self._items > _ITEMS:
                raise ValueError(
                    f"the arrays of the header have {self._items} items, the limit is {_ITEMS}"
                )
        if kind == _STRING:
            for _ in range(count):
                self._skip_text()
        elif kind in _SIZES:
            self._skip(count * _SIZES[kind])
        else:
            raise ValueError(f"a metadata value has the unknown type {kind}")

    def _skip_text(self) -> None:
        self._skip(self._read("Q"))

    def _read(self, kind: str) -> int:
        start, size = self._offset, struct.calcsize(kind)
        self._skip(size)
        return struct.unpack_from(f"{self._order}{kind}", self._data, start)[0]

    def _skip(self, size: int) -> None:
        self._offset += size
        if self._offset > _BYTES:
            raise ValueError(f"the header is larger than {_BYTES >> 20} MiB")
        if self._offset > len(self._data):
            raise ValueError("the header runs past the end of the file")
