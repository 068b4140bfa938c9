"""A stage: one step of a run's pipeline, and the context that its function works in."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from rag_jax.pipeline.maps import ResumableMap, Worker
from rag_jax.runtime.progress import show_progress


class WorkerDone(Exception):
    """Ends a stage's function in a worker that has made its part of every shardable file."""


class StageContext:
    """What a stage's function works with: its folder, the artefacts it needs, resumable maps.

    `stages_folder` holds a folder for each stage, but for the stages of another run that this run
    was `given`: their folders, by name. The stage itself works in `folder`, by default its own
    among them. Several workers may divide the stage's maps.
    """

    def __init__(
        self,
        stage: "Stage",
        stages_folder: Path,
        worker: Worker | None = None,
        folder: Path | None = None,
        given: Mapping[str, Path] = MappingProxyType({}),
    ):
        self.name = stage.name
        self.folder = folder or stages_folder / stage.name
        self._stage, self._stages_folder, self._worker = stage, stages_folder, worker
        self._given = given
        self._shared: set[str] = set()

    def path(self, stage: str, file: str) -> Path:
        """An artefact of this stage, or of a stage that this stage declares in `needs`."""
        if stage not in (self._stage.name, *self._stage.needs):
            raise ValueError(f"stage {self._stage.name} does not declare that it needs {stage}")
        if stage == self._stage.name:
            return self.folder / file
        return self._given.get(stage, self._stages_folder / stage) / file

    def needs(self, stage: str) -> bool:
        """Whether this stage declares that it needs the artefacts of `stage`."""
        return stage in self._stage.needs

    def progress(self, total: int, *, unit: str, initial: int = 0) -> AbstractContextManager[tqdm]:
        """A progress bar with the stage's name; arguments as for `show_progress`."""
        return show_progress(f"stage {self._stage.name}", total, unit=unit, initial=initial)

    def map(
        self,
        file: str,
        items: Sequence[Any],
        run: Callable[[Sequence[Any]], Any],
        *,
        batch_size: int,
        unit: str,
    ) -> Any:
        """Maps batches of items into `file` in this stage's folder; see `ResumableMap`.

        Raises:
            WorkerDone: in a worker other than the first, after the stage's last shardable file.
        """
        worker = self._worker if file in self._stage.shardable else None
        mapped = ResumableMap(self.folder / file, items, batch_size, worker)
        mapped.make_pieces(run, unit=unit, progress=self.progress)
        if worker and worker.index:
            self._shared.add(file)
            if self._shared.issuperset(self._stage.shardable):
                raise WorkerDone
        return mapped.collect()


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        run: makes the stage's artefacts in `context.folder`. After an interruption `run` is called
            again on the same folder. `run` reads no settings and artefacts but the declared ones.
        settings: every setting that `run` reads, and the fingerprints of weights; JSON-able.
        needs: names of earlier stages whose artefacts `run` reads.
        version: raise it when the code makes other artefacts from the same settings.
        shardable: names of the files that `run` maps items to and that several workers may divide.
        evaluates: whether the stage only measures, so that its settings may change in a finished
            run. A stage that no other one needs may in any case.
        check: looks at the artefacts of a run's first stage before a finished run is changed, and
            raises a RagJaxError if later stages cannot work with them.
        room: estimates the bytes that the stage leaves on the disk, and the bytes that it needs
            beside those while it is made; called after the first stage's check.
        repairs: if True, the stage repairs its own damaged outputs and is re-run on the existing
            folder; otherwise a damaged stage is rebuilt from scratch.
    """

    name: str
    run: Callable[[StageContext], None]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    version: int = 1
    shardable: tuple[str, ...] = ()
    repairs: bool = False
    evaluates: bool = False
    check: Callable[[StageContext], None] = lambda context: None
    room: Callable[[], tuple[int, int]] = lambda: (0, 0)
