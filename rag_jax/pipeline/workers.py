"""Workers: processes that make pieces of a run's maps while one driver process runs the stages.

A worker cannot be sent what a map calls, which holds models on devices. It opens the run's stages
anew from their settings (`Opener`), calls the stage's function up to the map (`MapTask`), and keeps
what that map calls. Then it makes the pieces that it is asked for, one at a time, as files in the
work folder, which driver and workers share. While it opens a stage it writes nothing: what comes
before the map in the stage was written by the driver.
"""

import contextlib
import functools
import hashlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

import rag_jax
from rag_jax.pipeline.command import keep_programs
from rag_jax.pipeline.maps import MakeAll, ResumableMap
from rag_jax.pipeline.records import STARTED, fingerprint
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, read_json
from rag_jax.runtime.hosts import only_reading
from rag_jax.runtime.memory import release_memory, return_freed

# Seconds that one machine's files may take until another one sees them, on a network's disk.
_SEEN_WITHIN = 90.0


@dataclass(frozen=True)
class Opener:
    """How a worker opens a run.

    Attributes:
        function: of a module; gives the mesh to run on, if there is one, and the stages.
        arguments: of the function; JSON-able.
    """

    function: Callable[..., tuple[Mesh | None, Sequence[Stage]]]
    arguments: Mapping[str, Any]


class Executor(Protocol):
    """Has the pieces of maps made by workers."""

    def divide(
        self, opener: Opener, stage: Stage, mapped: ResumableMap, stages_folder: Path
    ) -> MakeAll:
        """Has workers that open a run make the pieces of one of its stages' maps."""


@dataclass(frozen=True)
class MapTask:
    """A map whose pieces workers make: its stage and file, and the folders of the run's stages.

    `cwd` is the driver's working folder, which relative paths in settings start from.
    """

    stage: str
    file: str
    folder: Path
    stages_folder: Path
    cwd: Path

    @classmethod
    def of(cls, stage: Stage, mapped: ResumableMap, stages_folder: Path) -> "MapTask":
        """The task of a map that this process has opened."""
        folder = mapped.path.parent.absolute()
        return cls(stage.name, mapped.path.name, folder, stages_folder.absolute(), Path.cwd())


def describe_map(stage: Stage, mapped: ResumableMap) -> dict[str, Any]:
    """What a worker has to find as the driver does, so that its pieces are the driver's own."""
    return {
        "the source of rag_jax": hash_source(),
        "the version of JAX": jax.__version__,
        "the stage's settings, data or weights": fingerprint([stage.version, stage.settings]),
        "the work folder": read_json(mapped.path.parent / STARTED)["run"],
        "the number of items": len(mapped.items),
        "the number of items a piece": mapped.batch_size,
    }


@functools.cache
def hash_source() -> str:
    """SHA-256 of the package's source files, in hexadecimal."""
    root, sums = Path(rag_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sums.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return sums.hexdigest()


def wait_for(path: Path) -> None:
    """Waits until this machine sees a file that another one has written.

    Raises:
        RagJaxError: it does not appear.
    """
    end = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > end:
            raise RagJaxError(
                f"{path}: written by another process of the run, but not seen on "
                f"{socket.gethostname()}; choose a work folder that all machines share"
            )
        time.sleep(0.1)


class _MapReached(Exception):
    """Ends a stage's function at the map that a worker makes pieces of."""

    def __init__(self, mapped: ResumableMap, run: Callable[[Sequence[Any]], Any]):
        self.mapped, self.run = mapped, run


class _OpeningContext(StageContext):
    """The context of a stage's function up to a task's map; earlier maps are read."""

    def __init__(self, stage: Stage, task: MapTask):
        super().__init__(stage, task.stages_folder, folder=task.folder)
        self._file = task.file

    def map(
        self,
        file: str,
        items: Sequence[Any],
        run: Callable[[Sequence[Any]], Any],
        *,
        batch_size: int,
        unit: str,
    ) -> Any:
        mapped = ResumableMap(self.folder / file, items, batch_size)
        if file == self._file:
            raise _MapReached(mapped, run)
        wait_for(mapped.path)
        return mapped.codec.read(mapped.path)


class Worker:
    """Makes pieces of maps; keeps the models of the run that it opened last."""

    def __init__(self) -> None:
        keep_programs()
        self._opener: Opener | None = None
        self._mesh: Mesh | None = None
        self._stages: Sequence[Stage] = ()
        self._mapped: ResumableMap | None = None
        self._run: Callable[[Sequence[Any]], Any] | None = None

    def open(self, opener: Opener, task: MapTask) -> dict[str, Any]:
        """Opens a run's stage up to a map.

        Returns:
            What has to be as in the driver; see `describe_map`.

        Raises:
            RagJaxError: a fault of the settings, the data, the models or the disk.
            ValueError: the stage's function does not map the task's file.
        """
        self._mapped = self._run = None  # the devices' memory is needed for what comes
        release_memory()
        _enter(task.cwd)
        wait_for(task.folder / STARTED)
        with only_reading():
            if self._opener != opener:
                self._opener, self._stages = None, ()
                self._mesh, self._stages = opener.function(**opener.arguments)
                self._opener = opener
            stage = next(stage for stage in self._stages if stage.name == task.stage)
            with self._work():
                try:
                    stage.run(_OpeningContext(stage, task))
                except _MapReached as reached:
                    self._mapped, self._run = reached.mapped, reached.run
                else:
                    raise ValueError(f"stage {task.stage} does not map {task.file}")
        return describe_map(stage, self._mapped)

    def make(self, start: int, stop: int) -> None:
        """Makes the piece of the opened map that has the items from `start` to before `stop`.

        Raises:
            RagJaxError: the disk is full or cannot be written.
        """
        mapped = self._mapped
        with self._work(), explain_disk_errors(mapped.path.parent):
            mapped.make_piece(self._run, range(start, stop))
        return_freed()

    def _work(self) -> AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _enter(folder: Path) -> None:
    """Makes a folder the working folder; raises a RagJaxError if it is not there."""
    try:
        os.chdir(folder)
    except OSError as error:
        raise RagJaxError(
            f"{folder}: cannot be entered ({error.strerror}); run the command in a folder that all "
            "machines have"
        ) from None
