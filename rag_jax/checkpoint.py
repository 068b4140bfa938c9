"""Trees of arrays on disk, written whole or not at all. The only file that imports Orbax."""

import errno
import os
import re
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rag_jax.errors import RagJaxError
from rag_jax.files import read_json, write_json
from rag_jax.hosts import is_first, wait_for_all

KEEP = 2
_SUMS = "checksums.json"


class Checkpoints:
    """The newest `KEEP` checkpoints of a training run, each in `folder/<step>`."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = Path(folder)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        if not self._folder.exists():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def save(self, step: int, tree: Any) -> None:
        """Writes a checkpoint, then removes all but the newest `KEEP`."""
        save_tree(self._folder / str(step), tree)
        if is_first():
            for old in self.steps()[:-KEEP]:
                shutil.rmtree(self._folder / str(old))

    def restore_latest(self, abstract: Any) -> tuple[int, Any] | None:
        """The newest undamaged checkpoint as `(step, tree)`, or None.

        A damaged one is removed with a warning.

        Args:
            abstract: as for `load_tree`.
        """
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
        if is_first():
            shutil.rmtree(self._folder, ignore_errors=True)


def save_tree(folder: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays as `folder`, in place of what was there.

    Each process writes its own shards, the first one everything else.

    Raises:
        OSError: with its errno, if the disk is full or cannot be written.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_first():
        shutil.rmtree(partial, ignore_errors=True)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(folder.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    wait_for_all(f"{folder} is to be written")
    try:
        _checkpointer().save(partial / "tree", args=ocp.args.PyTreeSave(tree))
        if is_first():
            write_json(partial / _SUMS, _sum_files(partial / "tree"))
    except BaseException as error:
        for left in folder.parent.glob(f"{partial.name}*"):
            shutil.rmtree(left, ignore_errors=True)
        # TensorStore reports what went wrong with the disk in the text of a ValueError.
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise
    if is_first():
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    wait_for_all(f"{folder} was written")


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
    try:
        whole = read_json(folder / _SUMS) == _sum_files(folder / "tree")
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise RagJaxError(f"checkpoint {folder}: missing, cut short or altered")
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    wanted = jax.tree.map(describe, abstract)
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments)
    return _checkpointer().restore(folder / "tree", args=restore)


def _checkpointer() -> ocp.Checkpointer:
    # Weights hardly compress, and trying to makes saving several times slower.
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def _sum_files(folder: Path) -> dict[str, int]:
    """CRC-32 of every file in a folder. Orbax itself does not notice a changed bit in an array."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                total = zlib.crc32(block, total)
        sums[str(path.relative_to(folder))] = total
    return sums
