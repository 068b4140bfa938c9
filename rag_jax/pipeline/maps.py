"""The resumable map: batches of items to records or arrays, each batch a file until all are there.

Every batch's result is a *piece* on disk before the next batch begins, so an interrupted map loses
at most one batch. Once all pieces exist, the first process joins them into the map's file. The
format of pieces and file is a codec, chosen by the file's suffix: `.jsonl` for a JSON record an
item, `.npy` for a float32 row an item, `.npz` for several arrays with a row an item.

The pieces are made one after another in this process, unless the caller has them made elsewhere.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.runtime import signals
from rag_jax.runtime.files import (
    map_array,
    open_atomic,
    read_arrays,
    read_jsonl,
    save_rows,
    write_jsonl,
)
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.memory import return_freed
from rag_jax.runtime.progress import Progress

# Has the pieces of batches made, and gives each batch once its piece is on disk. The function that
# it is given makes one in this process.
MakeAll = Callable[[Sequence[range], Callable[[range], None]], Iterator[range]]


def make_here(batches: Sequence[range], make: Callable[[range], None]) -> Iterator[range]:
    """Makes the pieces one after another in this process."""
    for batch in batches:
        signals.check()
        make(batch)
        yield batch
        return_freed()


@dataclass(frozen=True)
class Codec:
    """How a map's results are kept on disk: counted, written as pieces, joined into a file, read.

    `join` also takes the number of items.
    """

    count: Callable[[Any], int]
    write: Callable[[Path, Any], None]
    join: Callable[[Path, Sequence[Path], int], None]
    read: Callable[[Path], Any]


def _join_lines(path: Path, pieces: Sequence[Path], count: int) -> None:
    with open_atomic(path, "wb") as out:
        for piece in pieces:
            with open(piece, "rb") as part:
                shutil.copyfileobj(part, out)


def _write_rows(path: Path, rows: Any) -> None:
    save_rows(path, [np.asarray(rows, np.float32)], len(rows))


def _join_rows(path: Path, pieces: Sequence[Path], count: int) -> None:
    save_rows(path, map(map_array, pieces), count)


def _count_arrays(arrays: dict[str, np.ndarray]) -> int:
    (count,) = {len(array) for array in arrays.values()}
    return count


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # Not straight into the file, which is the null device in all processes but the first: a zip
    # archive seeks.
    data = io.BytesIO()
    np.savez(data, **arrays)
    with open_atomic(path, "wb") as out:
        out.write(data.getbuffer())


def _join_arrays(path: Path, pieces: Sequence[Path], count: int) -> None:
    parts = [read_arrays(piece) for piece in pieces]
    _write_arrays(path, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


CODECS = {
    ".jsonl": Codec(len, write_jsonl, _join_lines, read_jsonl),
    ".npy": Codec(len, _write_rows, _join_rows, map_array),
    ".npz": Codec(_count_arrays, _write_arrays, _join_arrays, read_arrays),
}


@dataclass(frozen=True)
class ResumableMap:
    """A map from items to `path`, which continues where it was interrupted.

    Attributes:
        path: the file that holds the results; its suffix chooses the codec.
        items: in the same order at every call. Slices of `items` are the batches.
    """

    path: Path
    items: Sequence[Any]
    batch_size: int

    @property
    def codec(self) -> Codec:
        """How results are kept."""
        return CODECS[self.path.suffix]

    @cached_property
    def pieces(self) -> dict[range, Path]:
        """The file of every batch, by the numbers of the batch's items."""
        count, size = len(self.items), self.batch_size
        batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
        stem, suffix = self.path.stem, self.path.suffix
        return {b: self.path.with_name(f"{stem}.{b.start}-{b.stop}{suffix}") for b in batches}

    def make_pieces(
        self,
        run: Callable[[Sequence[Any]], Any],
        *,
        unit: str,
        progress: Progress,
        make_all: MakeAll = make_here,
    ) -> None:
        """Makes the pieces that are not on disk yet.

        Args:
            run: gives a batch's result: JSON records, rows `[batch, ...]`, or a dict of arrays
                `[batch, ...]`.
            unit: what the progress bar counts, in the plural.

        Raises:
            ValueError: `run` gave a result for another number of items than it was given.
        """
        batches = [] if self.path.exists() else list(self.pieces)
        missing = [batch for batch in batches if not self.pieces[batch].exists()]
        wait_for_all(f"{self.path} was looked for")
        if not batches:
            return
        total = sum(map(len, batches))
        with progress(total, unit=unit, initial=total - sum(map(len, missing))) as bar:
            for batch in make_all(missing, partial(self.make_piece, run)):
                bar.update(len(batch))

    def make_piece(self, run: Callable[[Sequence[Any]], Any], batch: range) -> None:
        """Makes one piece; arguments and errors as for `make_pieces`."""
        result = run(self.items[batch.start : batch.stop])
        if (count := self.codec.count(result)) != len(batch):
            raise ValueError(f"{self.path.name}: {count} results for {batch}")
        self.codec.write(self.pieces[batch], result)

    def collect(self) -> Any:
        """The results of all items: the records, the rows as a memory map, or the arrays."""
        complete = self.path.exists()
        wait_for_all(f"{self.path} is to be joined")
        if not complete and is_first():
            self.codec.join(self.path, list(self.pieces.values()), len(self.items))
        wait_for_all(f"{self.path} was written")
        if is_first():
            for piece in self.pieces.values():
                piece.unlink(missing_ok=True)
        return self.codec.read(self.path)
