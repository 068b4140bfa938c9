"""Whether the files of a stage that ended are as they were: sizes and times first, then checksums.

To read 150,000 adapters, 2 TB, at every start of a run takes hours; to ask for their sizes and
times takes seconds. As in version control systems, a file that was written in the last moments
before its time was noted counts as unknown, because a change in the same moment would not show.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rag_jax.runtime.files import sum_file
from rag_jax.runtime.known_sums import MOMENT, VERIFY

_Seen = dict[str, tuple[int, int]]  # size and time of change in nanoseconds, by file


def note_seen(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 of the sizes and times of a folder's files, in hexadecimal."""
    return _hash(_look(folder, names))


def list_altered(folder: Path, sums: Mapping[str, int], seen: str | None, noted: Path) -> list[str]:
    """The names of files that are missing, or do not have their checksum.

    Where all sizes and times are as noted, only the files are read that were young then.

    Args:
        sums: CRC-32 by the name of a file.
        seen: what `note_seen` gave when the sums were taken, if they were noted.
        noted: the file that they were noted in.
    """
    found, doubtful = _look(folder, sums), set(sums)
    if seen is not None and _hash(found) == seen and not os.environ.get(VERIFY):
        doubtful = _list_young(found, noted)
    return [
        n for n in sums if n not in found or (n in doubtful and sum_file(folder / n) != sums[n])
    ]


def _look(folder: Path, names: Iterable[str]) -> _Seen:
    found = {}
    for name in names:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a name that no file has
            status = os.stat(f"{folder}/{name}")
            found[name] = status.st_size, status.st_mtime_ns
    return found


def _hash(found: _Seen) -> str:
    digest = hashlib.sha256()
    for name in sorted(found):
        size, time = found[name]
        digest.update(f"{name}\0{size} {time}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _list_young(found: _Seen, noted: Path) -> set[str]:
    """The files that were changed within a moment before `noted` was written, or after it."""
    start = noted.stat().st_mtime_ns - MOMENT
    return {name for name, (_, time) in found.items() if time >= start}
