"""A stage: one step of a run's pipeline, and the context that its function works in."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from rag_jax.pipeline.maps import MakeAll, ResumableMap, make_here
from rag_jax.runtime.progress import show_progress

# Has workers make the pieces of a stage's map. The path is the folder of all stages.
Divide = Callable[["Stage", ResumableMap, Path], MakeAll]


class StageContext:
    """What a stage's function works with: its folder, the artefacts it needs, resumable maps.

    `stages_folder`, in `workdir`, holds a folder for each stage, but for the stages of another run
    that this run was `given`: their folders, by name. The stage itself works in `folder`, by
    default its own among them. `divide` has workers make what the stage declares `divisible`.
    """

    def __init__(
        self,
        stage: "Stage",
        stages_folder: Path,
        divide: Divide | None = None,
        folder: Path | None = None,
        given: Mapping[str, Path] = MappingProxyType({}),
    ):
        self.name, self.workdir = stage.name, stages_folder.parent
        self.folder = folder or stages_folder / stage.name
        self._stage, self._stages_folder, self._given = stage, stages_folder, given
        self._divide = divide

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
        """Maps batches of items into `file` in this stage's folder; see `ResumableMap`."""
        mapped, make_all = ResumableMap(self.folder / file, items, batch_size), make_here
        if self._divide and file in self._stage.divisible:
            make_all = self._divide(self._stage, mapped, self._stages_folder)
        mapped.make_pieces(run, unit=unit, progress=self.progress, make_all=make_all)
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
        divisible: names of the files that `run` maps items to and whose pieces workers may make.
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
    divisible: tuple[str, ...] = ()
    repairs: bool = False
    evaluates: bool = False
    check: Callable[[StageContext], None] = lambda context: None
    room: Callable[[], tuple[int, int]] = lambda: (0, 0)
