"""A work folder: made where one can be, and held by one process at a time."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, require_file
from rag_jax.runtime.paths import expand_path

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def make_workdir(workdir: Path, flag: str) -> None:
    """Makes a work folder; raises a RagJaxError where none can be, or an OSError.

    Args:
        flag: by which the command line names the folder, for the message.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # as below /proc
        raise RagJaxError(
            f"cannot write {workdir}: no folder can be made there; choose a folder with {flag}"
        ) from None


def check_apart(workdir: Path, data: str | None, flag: str) -> None:
    """Raises a RagJaxError if a work folder is the folder or file that the data is read from.

    The data would be read with the run's own files among it, by the next run.
    """
    if data is not None and expand_path(data).resolve() == workdir.resolve():
        raise RagJaxError(
            f"{workdir}: has the data, which a run must not change; choose another folder with "
            f"{flag}"
        )


@contextlib.contextmanager
def hold_lock(path: Path, flag: str) -> Iterator[None]:
    """Holds a file for this process; the system releases it when the process ends.

    Args:
        flag: by which the command line names the work folder, for the message.

    Raises:
        RagJaxError: another process holds it, or it is no file.
    """
    if is_there(path):
        require_file(path, "remove it")
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RagJaxError(
                f"{path.parent}: in use by another run (process {owner}); wait for it or choose "
                f"another folder with {flag}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise RagJaxError(
                f"{path.parent}: its file system has no locks ({error.strerror.lower()}): mount it "
                f"with them, or choose another folder with {flag}"
            ) from None
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield
