"""Passages of a corpus, and the file format that stores passages for access by row."""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, overload

import numpy as np
from jaxtyping import Int

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import list_lines, map_array, open_atomic, save_array, to_json
from rag_jax.runtime.outside import parsing, require_file, show


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
    save_array(_offsets_path(path), np.asarray(offsets, np.int64))
    return PassageFile(path)


class PassageFile(Sequence[Passage]):
    """Sequence of the passages in a file of `write_passages`, read from disk on access.

    Opening it raises a RagJaxError if a file is missing or the two do not belong together, and so
    does a passage that is damaged when it is read, or a file that was replaced by another since.
    What is found in a pass through the whole file is kept: a run asks for it whenever it opens an
    index.
    """

    def __init__(self, path: Path):
        self._path = path
        require_file(path)
        offsets = np.array(map_array(_offsets_path(path)))
        with parsing(_offsets_path(path), "does not belong to its passages"):
            if offsets.dtype != np.int64 or offsets.ndim != 1:
                raise ValueError(f"it holds {offsets.dtype} of shape {list(offsets.shape)}")
            if (
                offsets[0] != 0
                or offsets[-1] != path.stat().st_size
                or (np.diff(offsets) < 1).any()
            ):
                raise ValueError("its offsets do not divide the file")
        self._offsets, self._written = offsets, _describe(path.stat())
        self._prefixed: dict[str, Int[np.ndarray, n]] = {}

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
        with parsing(self._path), self._open() as file:
            for line in list_lines(file):
                yield _parse(line)

    @cached_property
    def fingerprint(self) -> str:
        """The passages' `fingerprint_corpus`."""
        return _hash(self)

    def find_prefixed(self, prefix: str) -> Int[np.ndarray, "n"]:
        """The rows of the passages whose ids begin with a prefix."""
        if prefix not in self._prefixed:
            self._prefixed[prefix] = _find_prefixed(self, prefix)
        return self._prefixed[prefix]

    def _open(self) -> IO[bytes]:
        file = open(self._path, "rb")  # noqa: SIM115 (for the caller, who closes it)
        if _describe(os.fstat(file.fileno())) != self._written:
            file.close()
            raise RagJaxError(f"{self._path}: was replaced since it was opened; start again")
        return file

    def _read(self, start: int, stop: int) -> list[Passage]:
        first, last = self._offsets[start], self._offsets[stop]
        with parsing(self._path), self._open() as file:
            file.seek(first)
            # Splitting bytes, unlike splitting text, breaks at line ends only.
            passages = [_parse(line) for line in file.read(last - first).splitlines()]
            if len(passages) != stop - start:
                raise ValueError(f"rows {start} to {stop} hold {len(passages)} passages")
        return passages


def _describe(found: os.stat_result) -> tuple[int, int]:
    """What tells a file from another in its place. Some file systems number files anew."""
    return found.st_size, found.st_mtime_ns


def fingerprint_corpus(passages: Iterable[Passage]) -> str:
    """SHA-256 of the passages (ids, titles and texts, in order), in hexadecimal.

    Raises:
        TypeError: one of them is no `Passage`.
    """
    return passages.fingerprint if isinstance(passages, PassageFile) else _hash(passages)


def find_prefixed(passages: Sequence[Passage], prefix: str) -> Int[np.ndarray, "n"]:
    """The rows of the passages whose ids begin with a prefix."""
    is_file = isinstance(passages, PassageFile)
    return passages.find_prefixed(prefix) if is_file else _find_prefixed(passages, prefix)


def _hash(passages: Iterable[Passage]) -> str:
    digest = hashlib.sha256()
    for p in passages:
        if not isinstance(p, Passage):
            raise TypeError(f"{p!r} is no Passage: read a corpus, or use Passage(id, title, text)")
        digest.update(json.dumps((p.id, p.title, p.text)).encode() + b"\n")
    return digest.hexdigest()


def _find_prefixed(passages: Iterable[Passage], prefix: str) -> Int[np.ndarray, "n"]:
    return np.flatnonzero([passage.id.startswith(prefix) for passage in passages])


def _parse(line: bytes) -> Passage:
    passage = Passage(**json.loads(line))
    if not all(isinstance(text, str) for text in (passage.id, passage.title, passage.text)):
        raise TypeError(f"id, title and text must be texts, not {show(passage)}")
    return passage


def _offsets_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.offsets.npy")
