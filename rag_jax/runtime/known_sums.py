"""Checksums of large files that are remembered: a file is read again once it has changed.

A file is taken for unchanged if it has the size, the times and the place on the disk that were
noted. As in version control systems, a file that was changed in the last moments before the note
is not noted, because a change in the same moment would not show.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.manifest import hash_file
from rag_jax.runtime.outside import is_there, parsing, require_file

# Set to anything, it has every file read and compared with its checksum.
VERIFY = "RAG_JAX_VERIFY"
MOMENT = 2_000_000_000  # nanoseconds; the coarsest clock of a file system has two seconds
_SMALL = 1 << 20  # bytes that are read in the time that a note takes


def hash_known(path: Path, notes: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; a large file is not read if it is as noted.

    Args:
        notes: the folder of the notes, which is made with the first one. Where it cannot be
            written, nothing is remembered.

    Raises:
        RagJaxError: the path is a named pipe or the like.
    """
    require_file(path)
    before = _look(path)
    if path.stat().st_size < _SMALL:
        return hash_file(path)
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
    note = notes / f"{name}.json"
    if not os.environ.get(VERIFY) and (known := _read_note(note, before)):
        return known
    start, found = time.time_ns(), hash_file(path)
    if before == _look(path) and max(before[2:]) < start - MOMENT:
        with contextlib.suppress(OSError):
            notes.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(note, {"path": str(path.absolute()), "seen": before, "sha256": found})
    return found


def _look(path: Path) -> list[int]:
    """Place on the disk, size, and times of the last change of the content and of the file."""
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read_note(note: Path, seen: list[int]) -> str | None:
    """The checksum of a file that looks as it did; None for another note, or a damaged one."""
    if not is_there(note):
        return None
    with contextlib.suppress(RagJaxError), parsing(note):
        kept = read_json(note)
        if kept["seen"] == seen and isinstance(kept["sha256"], str):
            return kept["sha256"]
    return None
