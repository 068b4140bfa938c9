"""Trees of arrays on disk, written whole or not at all. The only file that imports Orbax."""

import contextlib
import errno
import os
import re
import shutil
import sys
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

KEEP = 2
_SUMS = "checksums.json"


class Checkpoints:
    """The newest `KEEP` checkpoints of a training run, each in `folder/<step>`.

    They are written while training goes on. As a context it ends once the last one is written.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        if not self._folder.exists():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def save(self, step: int, tree: Any) -> None:
        """Begins to write a checkpoint, and returns once it has read the arrays.

        After it is written, all but the newest `KEEP` are removed. While it is, its arrays stay in
        memory: a step to which they are donated takes new memory instead.

        Raises:
            OSError: with its errno, if the disk is full or cannot be written; perhaps because of
                the checkpoint before, which is waited for.
        """
        self.wait()
        finish = _begin_saving(self._folder / str(step), tree, ocp.AsyncCheckpointer)
        self._writing = self._writer.submit(self._finish, finish)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; raises what `save` does."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
            wait_for_all(f"a checkpoint in {self._folder} was written")

    def _finish(self, finish: Callable[[], None]) -> None:
        finish()
        if is_first():
            for old in self.steps()[:-KEEP]:
                shutil.rmtree(self._folder / str(old))

    def restore_latest(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest undamaged checkpoint as `(step, tree)`, or None.

        A damaged one is removed with a warning, a half-written one without.

        Args:
            abstract: as for `load_tree`.
        """
        self.wait()
        if is_first():
            for left in self._folder.glob(_name_partial("*") + "*"):
                shutil.rmtree(left)
        for step in reversed(self.steps()):
            try:
                return step, load_tree(self._folder / str(step), abstract)
            except RagJaxError as error:
                wait_for_all(f"checkpoint {step} was found damaged")
                if is_first():
                    print(f"warning: {error}; going back to the one before it", file=sys.stderr)
                    shutil.rmtree(self._folder / str(step))
        return None

    def remove(self) -> None:
        """Removes every checkpoint, for when what was trained is saved elsewhere."""
        self.wait()
        if is_first():
            shutil.rmtree(self._folder, ignore_errors=True)


def save_tree(folder: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays as `folder`, in place of what was there.

    Each process writes its own shards, the first one everything else.

    Raises:
        OSError: with its errno, if the disk is full or cannot be written.
    """
    _begin_saving(Path(folder), tree, ocp.Checkpointer)()
    wait_for_all(f"{folder} was written")


def _begin_saving(
    folder: Path, tree: Any, kind: Callable[..., ocp.Checkpointer]
) -> Callable[[], None]:
    """Begins to write `folder`; the function that it gives waits for the rest and names it so.

    Args:
        kind: `ocp.Checkpointer`, with which all is written before this returns, or
            `ocp.AsyncCheckpointer`, with which the arrays have been read by then.
    """
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
    """Removes what was written of a folder if the block fails, and says what of the disk did."""
    try:
        yield
    except BaseException as error:
        for left in folder.parent.glob(f"{partial.name}*"):
            shutil.rmtree(left, ignore_errors=True)
        # TensorStore reports what went wrong with the disk in the text of a ValueError.
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise


def is_whole(folder: str | os.PathLike) -> bool:
    """Whether a tree is there as `save_tree` wrote it."""
    try:
        return read_json(Path(folder) / _SUMS) == sum_files(Path(folder) / "tree")
    except (OSError, ValueError):
        return False


def load_tree(folder: str | os.PathLike, abstract: Any) -> Any:
    """Reads what `save_tree` wrote.

    Args:
        folder: the checkpoint.
        abstract: a tree of the same structure, with arrays or `jax.ShapeDtypeStruct`s for leaves.
            Each array goes to its leaf's sharding, or else to the first device.

    Raises:
        RagJaxError: if the checkpoint is not there, or not as it was written.
    """
    folder = Path(folder).absolute()
    # Orbax itself does not notice a changed bit in an array.
    if not is_whole(folder):
        raise RagJaxError(f"checkpoint {folder}: missing, cut short or altered")
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    wanted = jax.tree.map(describe, abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments)
    return ocp.Checkpointer(_handler()).restore(folder / "tree", args=restore)


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Weights hardly compress, and trying to makes saving several times slower.
    return ocp.PyTreeCheckpointHandler(use_compression=False)
