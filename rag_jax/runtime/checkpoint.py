"""Checkpoints: trees of arrays on disk, written atomically.

This is the only module that imports Orbax.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, sum_files, write_json
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.outside import parsing, require_files
from rag_jax.runtime.progress import log

KEEP = 2
_SUMS = "checksums.json"


class Checkpoints:
    """The newest `KEEP` checkpoints of a training run, each in `folder/<step>`.

    A checkpoint is written in the background while training continues. As a context manager,
    `Checkpoints` waits at its end until the last checkpoint is written. The first `save` creates
    the folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        if not self._folder.exists():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def save(self, step: int, tree: Any) -> None:
        """Starts to write the checkpoint after `step` steps; returns once the arrays are read.

        Waits for the previous checkpoint first. Once the new checkpoint is written, all but the
        newest `KEEP` are removed. Until then its arrays stay in memory: a training step to which
        the arrays are donated allocates new memory instead.

        Raises:
            OSError: with its errno, if this or the previous checkpoint cannot be written.
        """
        self.wait()
        finish = _begin_saving(self._folder / str(step), tree, ocp.AsyncCheckpointer)
        self._pending = self._writer.submit(self._finish, finish)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; the OSError of `save` if that failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            wait_for_all(f"a checkpoint in {self._folder} was written")

    def _finish(self, finish: Callable[[], None]) -> None:
        finish()
        if is_first():
            for old in self.steps()[:-KEEP]:
                shutil.rmtree(self._folder / str(old))

    def restore_latest(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest undamaged checkpoint as `(step, tree)`, or None if there is no checkpoint.

        Removes damaged checkpoints with a warning, and half-written checkpoints silently.
        """
        self.wait()
        if is_first():
            for partial in self._folder.glob(_name_partial("*") + "*"):
                shutil.rmtree(partial)
        for step in reversed(self.steps()):
            folder = (self._folder / str(step)).absolute()
            if is_whole(folder):
                return step, _restore(folder, abstract)
            wait_for_all(f"checkpoint {step} is damaged")
            log(f"warning: {_describe_damage(folder)}; going back to the checkpoint before it")
            if is_first():
                shutil.rmtree(folder)
        return None

    def remove(self) -> None:
        """Removes every checkpoint, once the trained parameters are saved elsewhere."""
        self.wait()
        if is_first():
            shutil.rmtree(self._folder, ignore_errors=True)


def check_path(folder: str | os.PathLike, flag: str = "--workdir") -> None:
    """Raises a RagJaxError if trees saved in a folder could not be read again.

    TensorStore takes `[` for a pattern when it reads, and a backslash for a slash. Orbax takes a
    folder `gs:` for a bucket. Both know UTF-8 alone. `flag` names the folder on the command line.
    """
    path = str(Path(folder).absolute())
    found = re.search(r"[\[\\]|gs:(?=/|$)", path)
    name = f"a {found[0]}" if found else "bytes that are no UTF-8" if not _is_utf8(path) else None
    if name is not None:
        raise RagJaxError(
            f"{path}: has {name} in its name, with which checkpoints cannot be read again; "
            f"choose another folder with {flag}"
        )


def _is_utf8(path: str) -> bool:
    return not re.search("[\ud800-\udfff]", path)


def save_tree(folder: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays as a folder, and replaces an older tree there.

    Each process writes its own shards. The first process also writes everything else.

    Raises:
        OSError: with its errno, if the disk is full or not writable.
        RagJaxError: from `check_path`.
    """
    _begin_saving(Path(folder), tree, ocp.Checkpointer)()
    wait_for_all(f"{folder} was written")


def _begin_saving(
    folder: Path, tree: Any, kind: Callable[..., ocp.Checkpointer]
) -> Callable[[], None]:
    """Starts to write a tree into a partial folder; returns the function that completes `folder`.

    `ocp.Checkpointer` returns after all arrays are written, `ocp.AsyncCheckpointer` once all are
    read.
    """
    check_path(folder)
    folder = folder.absolute()
    partial = folder.with_name(_name_partial(folder.name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_first():
        shutil.rmtree(partial, ignore_errors=True)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(folder.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    wait_for_all(f"{folder} is to be written")
    writer = kind(_handler())
    with _whole_or_not_at_all(folder, partial):
        writer.save(partial / "tree", args=ocp.args.PyTreeSave(tree))

    def finish() -> None:
        with _whole_or_not_at_all(folder, partial):
            if isinstance(writer, ocp.AsyncCheckpointer):
                writer.wait_until_finished()
            if is_first():
                write_json(partial / _SUMS, sum_files(partial / "tree"))
                if folder.exists():
                    shutil.rmtree(folder)
                partial.rename(folder)

    return finish


def _name_partial(name: str) -> str:
    return f".{name}.partial"


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path, partial: Path) -> Iterator[None]:
    """Removes the partial folder if the block fails, and turns errors of the disk into OSErrors."""
    try:
        yield
    except BaseException as error:
        for leftover in folder.parent.glob(f"{partial.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # TensorStore reports the errno of a disk error only in the text of a ValueError.
        if match := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(match[1])
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise


def is_whole(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a tree exactly as `save_tree` wrote it, by its checksums."""
    folder = Path(folder)
    try:
        with parsing(folder):
            require_files(folder)  # the sums are those of files, but Orbax would follow a link
            return read_json(folder / _SUMS) == sum_files(folder / "tree")
    except RagJaxError:
        return False


def load_tree(folder: str | os.PathLike, abstract: Any) -> Any:
    """Reads a tree that `save_tree` wrote.

    Args:
        abstract: a tree of the same structure, with arrays or `jax.ShapeDtypeStruct`s as leaves.
            Each array is placed by the sharding of its leaf, or on the first device if the leaf has
            no sharding.

    Raises:
        RagJaxError: the folder is missing or damaged, or holds another tree.
    """
    folder = Path(folder).absolute()
    # Orbax does not detect a changed bit in an array.
    if not is_whole(folder):
        raise RagJaxError(_describe_damage(folder))
    return _restore(folder, abstract)


def _describe_damage(folder: Path) -> str:
    return f"checkpoint {folder}: missing, cut short or altered"


def _restore(folder: Path, abstract: Any) -> Any:
    """As `load_tree`, of a folder that is whole."""
    first_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or first_device
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    target = jax.tree.map(describe, abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(target)
    restore = ocp.args.PyTreeRestore(item=target, restore_args=arguments)
    with parsing(f"checkpoint {folder}"):
        return ocp.Checkpointer(_handler()).restore(folder / "tree", args=restore)


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Weights hardly compress, and compression makes saving several times slower.
    return ocp.PyTreeCheckpointHandler(use_compression=False)
