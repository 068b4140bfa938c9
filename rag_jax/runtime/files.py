"""Reading and atomic writing of files: an interrupted write leaves the old file."""

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
import string
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.outside import LARGEST_JSON, is_there, parsing, require_file

_LONGEST_LINE = 1 << 27  # bytes or characters
# Advice for the errors that a user can fix. Any other OSError is a bug in the code.
_FULL, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)
_DISK_ERRORS = {
    **dict.fromkeys(_FULL, "free some space, then run the same command again"),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), then run the same command again",
    **dict.fromkeys(_READ_ONLY, "choose a folder that can be written with {flag}"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        "choose a folder with {flag}",
    ),
}


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    Only the first process writes to the disk. The other processes write to the null device. The
    folder of `path` must exist. `mode` is "w", for UTF-8 text, or "wb".
    """
    path, encoding = Path(path), None if "b" in mode else "utf-8"
    if not is_first():
        with open(os.devnull, mode, encoding=encoding) as file:
            yield file
        return
    # Not the process's number: processes in containers on several machines have the same.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden folder that replaces `folder` when the block ends without an error.

    The old folder is removed. Between the two renames whoever opens the folder finds none; if the
    process dies there, the old folder is left under a hidden name. Of two processes that replace
    the folder at once, one is the last.
    """
    temporary = _hide(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        while not _exchange(temporary, folder):  # another process was faster
            pass
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(made: Path, folder: Path) -> bool:
    """Puts a folder in the place of another; False if meanwhile there is a third one."""
    old = _hide(folder)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, old)
    try:
        os.rename(made, folder)
        is_done = True
    except BaseException as error:  # Ctrl-C too: the old folder comes back
        if getattr(error, "errno", None) not in (errno.ENOTEMPTY, errno.EEXIST):
            with contextlib.suppress(OSError):
                os.rename(old, folder)
            raise
        is_done = False
    shutil.rmtree(old, ignore_errors=True)
    return is_done


def _hide(path: Path) -> Path:
    """A hidden name beside a path that no other has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def remove_left(folder: Path) -> None:
    """Removes what processes that were killed in `replace_folder` have left beside a folder.

    No other process may be replacing the folder.
    """
    before = f".{folder.name}."
    for path in folder.parent.iterdir():
        name = path.name.removeprefix(before)
        if path.name.startswith(before) and len(name) == 32 and not {*name} - {*string.hexdigits}:
            shutil.rmtree(path)


@contextlib.contextmanager
def explain_disk_errors(folder: Path, flag: str = "--workdir") -> Iterator[None]:
    """Turns the OSError of a full or otherwise unusable disk into a RagJaxError.

    The message names `folder` if the OSError has no path, and `flag`, by which the command line
    names it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        path = error.filename2 or error.filename or folder
        advice = _DISK_ERRORS[error.errno].format(flag=flag)
        raise RagJaxError(f"cannot write {path}: {error.strerror.lower()}; {advice}") from error


@contextlib.contextmanager
def explain_removal(folder: Path) -> Iterator[None]:
    """Turns whatever error comes of the removal of a folder into a RagJaxError.

    What still writes may have made the folder again, so its identity counts and not its name.
    """
    opened = os.open(folder, os.O_RDONLY)  # keeps its number from being used again
    try:
        yield
    except Exception as error:
        if _is_same(folder, opened):
            raise
        raise RagJaxError(
            f"{folder}: was removed during the run; run the same command again, which begins anew"
        ) from error
    finally:
        os.close(opened)


def _is_same(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(opened))
    except FileNotFoundError:
        return False


def to_json(value: Any, **options: Any) -> str:
    """JSON text of a value. Dataclasses become objects, arrays lists, and array scalars numbers.

    Raises:
        ValueError: the value contains NaN or an infinity, which JSON does not have.
        TypeError: the value contains an object without a JSON form.
    """
    return json.dumps(value, default=_to_plain, ensure_ascii=False, allow_nan=False, **options)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a value as a JSON file."""
    with open_atomic(path) as file:
        file.write(to_json(value, indent=2) + "\n")


def read_json(
    path: str | os.PathLike,
    *,
    problem: str = "is not valid JSON",
    advice: str = "",
    largest: int = LARGEST_JSON,
) -> Any:
    """Reads a JSON file, whoever wrote it.

    Args:
        problem, advice: what the message says of a damaged file and what to do; see `parsing`.
        largest: the most bytes that the file may have.

    Raises:
        RagJaxError: the file is missing, no regular file, too large or not JSON.
    """
    require_file(path, advice, largest=largest)
    with parsing(path, problem, advice):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: str | os.PathLike, records: Iterable[Any]) -> None:
    """Writes JSON lines, one record per line."""
    with open_atomic(path) as file:
        file.writelines(to_json(record) + "\n" for record in records)


def read_jsonl(path: str | os.PathLike) -> list[Any]:
    """Reads JSON lines, one record per line.

    Raises:
        RagJaxError: the file is missing or no regular file, or a line is not JSON.
    """
    return list(stream_jsonl(path))


def stream_jsonl(path: str | os.PathLike) -> Iterator[Any]:
    """Yields what `read_jsonl` returns, a line at a time."""
    require_file(path)
    with parsing(path, "is not valid JSON lines"), open(path, encoding="utf-8") as file:
        for number, line in enumerate(list_lines(file), 1):
            with parsing(f"{path}:{number}", "is not valid JSON"):
                record = json.loads(line)
            yield record


def read_lines(path: Path) -> tuple[list[Any], int]:
    """The records that `append_line` wrote, up to the first torn line, and their size in bytes.

    Raises:
        RagJaxError: the path is no regular file.
    """
    records: list[Any] = []
    size = 0
    if is_there(path):
        require_file(path)
        with open(path, "rb") as file, contextlib.suppress(ValueError, RecursionError):
            for line in list_lines(file):
                if not line.endswith(b"\n"):
                    break
                records.append(json.loads(line))
                size += len(line)
    return records, size


def list_lines(file: IO) -> Iterator[Any]:
    """The lines of an open file; a ValueError for one that is longer than memory may have to be."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE >> 20} MiB")
        yield line


def append_line(path: Path, size: int, line: str) -> int:
    """Cuts a file to `size` bytes, appends a line and waits for the disk; returns the new size.

    Only the first process writes.
    """
    data = line.encode()
    if is_first():
        with open(path, "ab") as out:
            out.truncate(size)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    return size + len(data)


def save_rows(path: Path, pieces: Iterable[np.ndarray], count: int) -> None:
    """Writes the rows of several arrays as one `.npy` file, atomically.

    Args:
        pieces: arrays that follow each other along the first axis, equal in dtype and in the other
            axes. Only one piece is in memory at a time.
        count: total number of rows.
    """
    with open_atomic(path, "wb") as out:
        for number, piece in enumerate(map(np.ascontiguousarray, pieces)):
            if number == 0:
                header = np.lib.format.header_data_from_array_1_0(piece)
                shape = (count, *piece.shape[1:])
                np.lib.format.write_array_header_1_0(out, header | {"shape": shape})
            # np.save would report a full disk without an errno.
            out.write(piece.reshape(-1).view(np.uint8).data)


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes an array with at least one axis as a `.npy` file, atomically."""
    save_rows(path, [array], len(array))


def link_or_copy(path: Path, copy: Path) -> None:
    """A second name of a file, which takes no room, or a copy where the disk has no such names."""
    try:
        copy.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, copy)


def map_array(path: Path) -> np.ndarray:
    """Memory-maps the array of a `.npy` file; only the parts that are used are read.

    Raises:
        RagJaxError: the file is missing or damaged, or holds no numbers in this machine's order.
    """
    require_file(path)
    with parsing(path):
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if array.dtype.kind not in "biuf" or not array.dtype.isnative:
            raise ValueError(f"it holds {array.dtype}, no numbers in this machine's order")
        return array


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file by name; a RagJaxError if it is missing or damaged."""
    require_file(path)
    with parsing(path), np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def sum_files(folder: Path) -> dict[str, int]:
    """CRC-32 of every file in a folder and its subfolders, by path relative to the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sum_file(path) for path in files}


def sum_file(path: Path) -> int | None:
    """CRC-32 of a file; None for a folder or anything else that is no file."""
    if not path.is_file():
        return None
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
