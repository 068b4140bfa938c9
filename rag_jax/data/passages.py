"""Passages of a corpus, and the file format that stores passages for access by row."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from rag_jax.runtime.files import open_atomic, to_json


@dataclass(frozen=True)
class Passage:
    """Passage of a corpus.

    Attributes:
        id: unique within the corpus.
        title: of the article, not necessarily unique; empty if there is none.
    """

    id: str
    title: str
    text: str


def write_passages(path: Path, passages: Iterable[Passage]) -> "PassageFile":
    """Writes passages as JSON lines, one at a time, with byte offsets in a file of the same stem.

    The order is kept, so a row of an index over the passages is a row of the file. Only the first
    process may call this function.
    """
    offsets = array("q", [0])
    with open_atomic(path, "wb") as file:
        for passage in passages:
            line = (to_json(passage) + "\n").encode()
            file.write(line)
            offsets.append(offsets[-1] + len(line))
    with open_atomic(_offsets_path(path), "wb") as file:
        np.save(file, np.asarray(offsets, np.int64), allow_pickle=False)
    return PassageFile(path)


class PassageFile(Sequence[Passage]):
    """Sequence of the passages in a file of `write_passages`, read from disk on access."""

    def __init__(self, path: Path):
        self._path = path
        self._offsets = np.load(_offsets_path(path), allow_pickle=False)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, row: int) -> Passage: ...

    @overload
    def __getitem__(self, row: slice) -> list[Passage]: ...

    def __getitem__(self, row: int | slice) -> Passage | list[Passage]:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            return self._read(start, max(start, stop))
        if not -len(self) <= row < len(self):
            raise IndexError(f"no row {row} among {len(self)} passages")
        row = int(row) % len(self)
        return self._read(row, row + 1)[0]

    def __iter__(self) -> Iterator[Passage]:
        with open(self._path, "rb") as file:
            for line in file:
                yield Passage(**json.loads(line))

    def _read(self, start: int, stop: int) -> list[Passage]:
        first, last = self._offsets[start], self._offsets[stop]
        with open(self._path, "rb") as file:
            file.seek(first)
            # Splitting bytes, unlike splitting text, breaks at line ends only.
            lines = file.read(last - first).splitlines()
        return [Passage(**json.loads(line)) for line in lines]


def _offsets_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.offsets.npy")
