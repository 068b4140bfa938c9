"""A stage of a run: what it is, and what its function is given to work with."""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_jax.files import open_atomic, to_json
from rag_jax.hosts import is_first, wait_for_all


class StageContext:
    """What a stage's function gets: its folder, other stages' artefacts, and resumable maps."""

    def __init__(self, stage: "Stage", stages_folder: Path):
        self.folder = stages_folder / stage.name
        self._stage = stage
        self._stages_folder = stages_folder

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
        records, sizes = read_whole_lines(path, limit=len(items))
        wait_for_all(f"{path} was read")
        if len(records) == len(items):
            if is_first():
                path.touch()
            return records
        records = records[: len(records) // batch_size * batch_size]
        with (
            open_to_append(path, sum(sizes[: len(records)])) as out,
            self.progress(len(items), unit=unit, initial=len(records)) as bar,
        ):
            for start in range(len(records), len(items), batch_size):
                batch = items[start : start + batch_size]
                made = run(batch)
                if len(made) != len(batch):
                    raise ValueError(f"{file}: {len(made)} records for {len(batch)} items")
                lines = [to_json(record) for record in made]
                out("".join(line + "\n" for line in lines).encode())
                records += [json.loads(line) for line in lines]
                bar.update(len(batch))
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
            All rows, `[count, ...]` float32.
        """
        path = self.folder / file
        slices = [slice(s, min(s + batch_size, count)) for s in range(0, count, batch_size)]
        shards = [self.folder / f"{path.stem}.{s.start}-{s.stop}.npy" for s in slices]
        complete = path.exists()
        missing = [(s, f) for s, f in zip(slices, shards, strict=True) if not f.exists()]
        wait_for_all(f"{path} was looked for")
        if not complete:
            done = count - sum(rows.stop - rows.start for rows, _ in missing)
            with self.progress(count, unit=unit, initial=done) as bar:
                for rows, shard in missing:
                    made = np.asarray(run(rows), np.float32)
                    if len(made) != rows.stop - rows.start:
                        raise ValueError(f"{file}: {len(made)} rows for {rows}")
                    save_array(shard, made)
                    bar.update(len(made))
            if is_first():
                save_array(path, np.concatenate([np.load(shard) for shard in shards]))
        wait_for_all(f"{path} was written")
        if is_first():
            for shard in shards:
                shard.unlink(missing_ok=True)
        return np.load(path)


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
    """

    name: str
    run: Callable[[StageContext], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1


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
        say(f"{name}: {total} {unit}" + (f", {initial} done before" if initial else ""))
    start = time.monotonic()
    with tqdm(
        total=total, initial=initial, desc=name, unit=f" {unit}", disable=not terminal
    ) as bar:
        yield bar
    if not terminal:
        say(f"{name}: {total} {unit} in {time.monotonic() - start:.1f} s")


def say(line: str) -> None:
    """One line for whoever watches the run."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a `.npy` file, whole or not at all."""
    # Through memory: NumPy's own writes to a real file report a full disk without an errno.
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with open_atomic(path, "wb") as out:
        out.write(buffer.getbuffer())


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
