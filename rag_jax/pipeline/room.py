"""The room on the disk that a run needs, estimated and compared before the long stages begin."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rag_jax.pipeline import records
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError


class Need(NamedTuple):
    """What a stage that will be made needs, in bytes.

    Attributes:
        keeps: that it leaves on the disk.
        passing: that it needs beside those while it is made, such as for checkpoints.
        begun: of those that are on the disk already, of a part that was made.
        replaced: that are freed when it has ended, of the stage in its place.
    """

    keeps: int
    passing: int
    begun: int = 0
    replaced: int = 0


def check_room(stages: Sequence[Stage], workdir: Path, *, flag: str) -> None:
    """Compares what stages that will be made write with what the disk has left.

    Args:
        flag: by which the command line names the work folder.

    Raises:
        RagJaxError: the disk has less room, with both numbers.
    """
    needed = add_needs(map_needs(stages, workdir))
    free = shutil.disk_usage(workdir).free
    if needed > free:
        raise RagJaxError(
            f"{workdir}: the run needs about {needed / 1e9:.1f} GB ({needed} bytes) on the disk, "
            f"which has {free / 1e9:.1f} GB ({free} bytes) left; free some space, or choose a "
            f"folder on another disk with {flag}"
        )


def map_needs(stages: Sequence[Stage], workdir: Path) -> Iterable[Need]:
    """Yields what each stage needs."""
    for stage in stages:
        place = workdir / "stages" / stage.name
        folder = records.find_folder(place)
        replaced = measure_folder(place) if folder != place else 0
        yield Need(*stage.room(), measure_folder(folder), replaced)


def add_needs(needs: Iterable[Need]) -> int:
    """The most bytes that are written before others are freed, over stages in their order."""
    total = largest = 0
    for need in needs:
        keeps = max(0, need.keeps - need.begun)
        largest = max(largest, total + keeps + need.passing)
        total += keeps - need.replaced
    return largest


def measure_folder(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    total = 0
    for path in (Path(at) / name for at, _, names in os.walk(folder) for name in names):
        with contextlib.suppress(FileNotFoundError):  # by a worker that a stopped run left
            total += path.lstat().st_size
    return total
