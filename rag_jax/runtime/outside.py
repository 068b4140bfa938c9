"""The wall around files that others made: a fault in one is a single line that names the file.

Parsers raise errors of any class on damaged content, and opening a named pipe waits for ever. Every
loader looks at a file with `require_file` before it opens it, and interprets the content within
`parsing`. Nothing else belongs into such a block: a bug in other code would be taken for damage.
"""

import contextlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rag_jax.runtime.errors import RagJaxError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# The most bytes of a file that is read as a whole: a model's settings or tokenizer (those of known
# models have 35 MB), and any other JSON.
LARGEST_SETTINGS, LARGEST_JSON = 256 << 20, 1 << 30
POINTER = b"version https://git-lfs.github.com/"  # how a pointer of Git LFS begins
_LARGEST_POINTER = 1024  # bytes, by its specification
_MOST_FILES = 100_000  # in a folder that a library reads by itself
_LONGEST = 300  # characters of a value or a reason in a message


def is_there(path: str | os.PathLike) -> bool:
    """Whether a path exists, if only as a link that leads nowhere, which no loader may overlook."""
    return os.path.lexists(path)


def require_file(path: str | os.PathLike, advice: str = "", *, largest: int | None = None) -> None:
    """Looks whether a path is a regular file or a link to one, of which only small ones are opened.

    Args:
        advice: what to do, as the end of the message.
        largest: the most bytes that the file may have; None for any number.

    Raises:
        RagJaxError: the file is missing, too large or a pointer of Git LFS, or the path is
            something else, such as a named pipe.
    """
    end = f": {advice}" if advice else ""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise RagJaxError(f"{path} is missing{end}") from error
    except (OSError, ValueError) as error:
        raise RagJaxError(f"{path} cannot be read: {_explain(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise RagJaxError(f"{path} is {kind} in the place of a file{end}")
    if found.st_size < _LARGEST_POINTER and _is_pointer(path):
        raise RagJaxError(f"{path}: is a pointer of Git LFS: run `git lfs pull`")
    if largest is not None and found.st_size > largest:
        raise RagJaxError(
            f"{path} has {found.st_size:,} bytes, more than the limit of {largest:,}{end}"
        )


def _is_pointer(path: str | os.PathLike) -> bool:
    # Who opens a file that cannot be read says why.
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER
    return False


def require_files(folder: Path) -> None:
    """As `require_file`, for everything in a folder that a library reads by itself.

    Raises:
        RagJaxError: the folder is missing, or holds something other than files and folders, a link
            to a folder, or very many files.
    """
    if not folder.is_dir():
        raise RagJaxError(f"{folder} is missing or no folder")
    paths = [*itertools.islice(folder.rglob("*"), _MOST_FILES + 1)]
    if len(paths) > _MOST_FILES:
        raise RagJaxError(f"{folder} holds more than {_MOST_FILES:,} files and folders")
    for path in sorted(paths):
        if path.is_symlink() or not path.is_dir():
            require_file(path)


def check_names(paths: Iterable[Path]) -> None:
    """Checks that files' names are text, as ids and settings are.

    Raises:
        RagJaxError: a name has bytes that are not UTF-8.
    """
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RagJaxError(f"{show(str(path))}: the name is not UTF-8: rename it") from None


@contextlib.contextmanager
def parsing(source: object, problem: str = "cannot be read", advice: str = "") -> Iterator[None]:
    """Turns whatever a parser raises in the block into one RagJaxError, which keeps its cause.

    Rust libraries raise panics, which derive from BaseException, as do stops, which pass. A
    RagJaxError passes too.

    Args:
        source: the path, or what else was read, as the start of the message.
        problem: what follows the source.
        advice: what to do, as the end of the message.

    Raises:
        RagJaxError: in the place of any other error.
    """
    try:
        yield
    except RagJaxError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        end = f"; {advice}" if advice else ""
        raise RagJaxError(f"{source} {problem}: {_explain(error)}{end}") from error


def show(value: Any) -> str:
    """A value from a file as it stands in a message: on one line, and not longer than a few."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of many thousand digits, or deep nesting
        text = "what is too large to show"
    return _shorten(text)


def _explain(error: BaseException) -> str:
    """An error's reason on one line."""
    text = getattr(error, "strerror", None) or _shorten(" ".join(str(error).split()))
    vague = isinstance(error, LookupError | TypeError | AttributeError)
    return f"{type(error).__name__}: {text}" if vague else text or type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
