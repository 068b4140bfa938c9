"""Passages of a corpus, and the file that holds them, read row by row."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rag_jax.runtime.files import open_atomic, to_json

_OFFSETS = "offsets.npy"


@dataclass(frozen=True)
class Passage:
    """A passage; its title is empty where there is none. Titles need not be unique; ids are."""

    id: str
    title: str
    text: str


def write_passages(path: Path, passages: Iterable[Passage]) -> "PassageFile":
    """Writes passages as JSON lines, one at a time, with the lines' ends in a file beside it.

    They are in the order given, so that a row of an index over them is a row of the file.

    Returns:
        the file, opened; to be called by the first process alone.
    """
    ends = array("q", [0])
    with open_atomic(path, "wb") as file:
        for passage in passages:
            line = (to_json(passage) + "\n").encode()
            file.write(line)
            ends.append(ends[-1] + len(line))
    with open_atomic(_offsets(path), "wb") as file:
        np.save(file, np.asarray(ends, np.int64), allow_pickle=False)
    return PassageFile(path)


class PassageFile(Sequence[Passage]):
    """What `write_passages` wrote, by row; a slice gives a list."""

    def __init__(self, path: Path):
        self._path = path
        self._ends = np.load(_offsets(path), allow_pickle=False)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row):
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
        first, last = self._ends[start], self._ends[stop]
        with open(self._path, "rb") as file:
            file.seek(first)
            lines = file.read(last - first).splitlines()  # of bytes: at line ends only
        return [Passage(**json.loads(line)) for line in lines]


def _offsets(path: Path) -> Path:
    return path.with_name(f"{path.stem}.{_OFFSETS}")
