"""A stage of a run: what it is, and what its function is given to work with."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_jax.runtime import signals
from rag_jax.runtime.files import map_array, read_jsonl, save_rows, to_json, write_jsonl
from rag_jax.runtime.hosts import is_first, wait_for_all

# Seconds between two looks at what other processes have made.
POLL = 1.0


@dataclass(frozen=True)
class Shard:
    """One process's share of divided stages: every `count`-th batch, from batch `number` on.

    The first, number 0, makes what is not divided, too, and puts the others' batches together.
    """

    number: int
    count: int


class ShardMade(Exception):
    """Ends a stage's function where the first process goes on alone."""


class StageContext:
    """What a stage's function gets: its folder, other stages' artefacts, and resumable maps.

    With a shard the maps make that share of their batches, each in a file of its own, and wait for
    the other processes' before they return.
    """

    def __init__(self, stage: "Stage", stages_folder: Path, shard: Shard | None = None):
        self.folder = stages_folder / stage.name
        self._stage = stage
        self._stages_folder = stages_folder
        self._shard = shard

    def path(self, stage: str, file: str) -> Path:
        """An artefact of this stage, or of one that it declares in `needs`."""
        if stage not in (self._stage.name, *self._stage.needs):
            raise ValueError(f"stage {self._stage.name} does not declare that it needs {stage}")
        return self._stages_folder / stage / file

    def progress(
        self, total: int, *, unit: str, initial: int = 0
    ) -> contextlib.AbstractContextManager[tqdm]:
        """`show_progress` of this stage."""
        return show_progress(f"stage {self._stage.name}", total, unit=unit, initial=initial)

    def map_batches(
        self,
        file: str,
        items: Sequence[Any],
        run: Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]],
        *,
        batch_size: int,
        unit: str,
    ) -> list[dict[str, Any]]:
        """Maps batches of items to one JSON record each, and appends them to `file`.

        Each batch is on disk before the next begins, so an interrupted stage loses at most one.

        Args:
            file: JSON lines in this stage's folder.
            items: in the same order at every run.
            run: gives as many records as it is given items.
            batch_size: items for each call of `run`; the last may get fewer.
            unit: what the progress bar counts, in the plural.

        Returns:
            All records, as read back from JSON.
        """
        path = self.folder / file

        def make(start: int) -> list[Mapping[str, Any]]:
            batch = items[start : start + batch_size]
            made = run(batch)
            if len(made) != len(batch):
                raise ValueError(f"{file}: {len(made)} records for {len(batch)} items")
            return list(made)

        records, sizes = read_whole_lines(path, limit=len(items))
        if len(records) < len(items):
            records = records[: len(records) // batch_size * batch_size]
        starts = range(len(records), len(items), batch_size)
        pieces = {start: path.with_name(f"{file}.{start}") for start in starts}
        if self._shard is not None and file in self._stage.shardable:
            self._share(
                file,
                pieces,
                lambda start: write_jsonl(pieces[start], make(start)),
                lambda: len(read_whole_lines(path)[0]) >= len(items),
                batch_size=batch_size,
                unit=unit,
            )
            if self._shard.number:
                try:
                    return records + [r for piece in pieces.values() for r in read_jsonl(piece)]
                except FileNotFoundError:  # the first process has put them together
                    return read_jsonl(path)
        ready = {start for start, piece in pieces.items() if piece.exists()}
        wait_for_all(f"{path} was read")
        if not pieces:
            if is_first():
                path.touch()
            return records
        with (
            open_to_append(path, sum(sizes[: len(records)])) as out,
            self.progress(len(items), unit=unit, initial=len(records)) as bar,
        ):
            for start, piece in pieces.items():
                signals.check()
                made = read_jsonl(piece) if start in ready else make(start)
                lines = [to_json(record) for record in made]
                out("".join(line + "\n" for line in lines).encode())
                records += [json.loads(line) for line in lines]
                bar.update(len(lines))
        _remove(pieces.values())
        return records

    def map_arrays(
        self,
        file: str,
        count: int,
        run: Callable[[slice], np.ndarray],
        *,
        batch_size: int,
        unit: str,
    ) -> np.ndarray:
        """Maps slices of `range(count)` to float32 rows, kept in `file` as one `.npy` array.

        Each slice's rows are a file of their own until all are there, so an interrupted stage
        loses at most one slice.

        Args:
            file: its name ends in `.npy`; in this stage's folder.
            count: the number of rows, at least 1.
            run: gives the rows of a slice, `[rows, ...]`.
            batch_size: rows for each call of `run`; the last may get fewer.
            unit: what the progress bar counts, in the plural.

        Returns:
            All rows, `[count, ...]` float32, by `map_array`.
        """
        path = self.folder / file
        complete = path.exists()
        starts = () if complete else range(0, count, batch_size)
        pieces = {start: self.folder / f"{path.stem}.{start}.npy" for start in starts}

        def make(start: int) -> None:
            rows = slice(start, min(start + batch_size, count))
            made = np.asarray(run(rows), np.float32)
            if len(made) != rows.stop - rows.start:
                raise ValueError(f"{file}: {len(made)} rows for {rows}")
            save_rows(pieces[start], [made], len(made))

        if self._shard is not None and file in self._stage.shardable:
            self._share(file, pieces, make, path.exists, batch_size=batch_size, unit=unit)
            if self._shard.number:
                try:
                    made = [np.load(piece) for piece in pieces.values()]
                    return np.concatenate(made) if made else map_array(path)
                except FileNotFoundError:  # the first process has put them together
                    return map_array(path)
        missing = [start for start, piece in pieces.items() if not piece.exists()]
        wait_for_all(f"{path} was looked for")
        if not complete:
            done = batch_size * (len(pieces) - len(missing))
            with self.progress(count, unit=unit, initial=min(done, count)) as bar:
                for start in missing:
                    signals.check()
                    make(start)
                    bar.update(min(batch_size, count - bar.n))
            if is_first():
                save_rows(path, map(np.load, pieces.values()), count)
        wait_for_all(f"{path} was written")
        _remove(pieces.values())
        return map_array(path)

    def _share(
        self,
        file: str,
        pieces: Mapping[int, Path],
        make: Callable[[int], None],
        is_complete: Callable[[], bool],
        *,
        batch_size: int,
        unit: str,
    ) -> None:
        """Makes the pieces of a map that fall to this process, and waits for the others.

        Args:
            pieces: files by the number of their first item.
            make: writes one.
            is_complete: whether the first process has put them together.

        Raises:
            ShardMade: instead of waiting, if the first process alone has to do with the others.
        """
        shard, name = self._shard, f"stage {self._stage.name}"
        own = [start for start in pieces if start // batch_size % shard.count == shard.number]
        missing = [start for start in own if not pieces[start].exists()]
        done = len(own) - len(missing)
        with self.progress(len(own), unit=f"batches of {unit}", initial=done) as bar:
            for start in missing:
                signals.check()
                make(start)
                bar.update(1)
        if shard.number and file == self._stage.shardable[-1]:
            raise ShardMade
        said = False
        while any(not piece.exists() for piece in pieces.values()) and not is_complete():
            if not said:
                log(f"{name}: waiting for the other shards of {file}")
                said = True
            time.sleep(POLL)


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: of the stage and its folder.
        run: makes the stage's artefacts in `context.folder`. After an interruption it is called
            again on what it left there. It reads no settings and artefacts but the declared ones.
        settings: everything it reads from the config, and the weights' fingerprints; JSON-able.
        needs: earlier stages whose artefacts it reads.
        version: raise it when the code makes something else from the same settings.
        divides: the files that it maps items to, in order, where processes may share its work.
        mends: when files of its folder are damaged, it is called again on what is there, which it
            looks after itself; other stages are made again from an empty folder.
    """

    name: str
    run: Callable[[StageContext], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1
    divides: tuple[str, ...] = ()
    mends: bool = False


@contextlib.contextmanager
def show_progress(name: str, total: int, *, unit: str, initial: int = 0) -> Iterator[tqdm]:
    """A progress bar with a time estimate; without a terminal, a line at start and end.

    Args:
        name: of what goes on.
        total: how many `unit`s there are; `initial` of them were done by an earlier run.
        unit: what is counted, in the plural.
    """
    terminal = sys.stderr.isatty() and is_first()
    if not terminal:
        log(f"{name}: {total} {unit}" + (f", {initial} done before" if initial else ""))
    start = time.monotonic()
    with tqdm(
        total=total, initial=initial, desc=name, unit=f" {unit}", disable=not terminal
    ) as bar:
        yield bar
    if not terminal:
        log(f"{name}: {total} {unit} in {time.monotonic() - start:.1f} s")


def log(line: str) -> None:
    """One line for whoever watches the run."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_to_append(path: Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """Cuts a file to `size` bytes and gives a function that appends to it and waits for the disk.

    Only the first process writes; what the others append is dropped.
    """
    if not is_first():
        yield lambda data: None
        return
    with open(path, "ab") as out:

        def append(data: bytes) -> None:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

        out.truncate(size)
        yield append


def _remove(pieces: Iterable[Path]) -> None:
    if is_first():
        for piece in pieces:
            piece.unlink(missing_ok=True)


def read_whole_lines(
    path: Path, *, limit: int | None = None
) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a JSON lines file up to the first torn line, and each line's bytes.

    Args:
        limit: so many records at the most; None for all.
    """
    records: list[dict[str, Any]] = []
    sizes: list[int] = []
    if not path.exists():
        return records, sizes
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or len(records) == limit:
                break
            records.append(record)
            sizes.append(len(line))
    return records, sizes
