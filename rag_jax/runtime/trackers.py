"""The trackers that there are: TensorBoard's event files, Weights & Biases, and trackio.

Their libraries are imported when a tracker is opened.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.progress import log

NONE = "none"
# The package that each tracker needs, which the extra of the tracker's name brings.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_FLUSH = 5.0  # seconds between two times that events reach the disk
_WAIT = 60.0  # seconds that the start of a stage waits for a service, and its end for an upload
_PROJECT = "rag_jax"


@runtime_checkable
class Tracker(Protocol):
    """Where the curves of one stage go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes the values of a step, each by the name of its curve; steps come in order."""

    def close(self) -> None:
        """Ends the tracking of the stage; what was taken is kept."""


@dataclass(frozen=True)
class Tracked:
    """What is tracked: one making of a stage.

    Attributes:
        tracker: its name, `NONE` or one of `PACKAGES`.
        workdir: the run's work folder; a tracker keeps its files in the folder of its own name.
        name: of the stage.
        making: identifies this making of the stage, however often it is interrupted.
        settings: of the run, as JSON values, for the reader.
    """

    tracker: str
    workdir: Path
    name: str
    making: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The tracker's own folder."""
        return self.workdir / self.tracker


class TensorBoard:
    """Event files in `<folder>/<stage>`, written anew whenever a stage is begun or continued.

    So they never have a step twice, whatever a process that was killed had written.
    """

    def __init__(self, tracked: Tracked):
        """Removes the stage's event files and begins a new one."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = tracked.folder / tracked.name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        # Not `SummaryWriter`: the thread that it writes in dies of a full disk, and whoever logs
        # then waits for ever.
        self._writer, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        # A TensorBoard that is open forgets what it has read of the files before.
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=start))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes an event with the values of a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=points))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


class Service:
    """A run of a service, which takes back nothing that it was sent.

    A stage that continues after a stop goes on in the same run. It takes the steps since its
    checkpoint again, with the same values to the bit, and they are not sent twice:
    `<folder>/<stage>.json` notes the run and its last step when the run is closed. A process that
    is killed closes nothing, and nobody knows what arrived. The stage then goes on in a new run,
    which is sent everything.
    """

    def __init__(self, tracked: Tracked, begin: Callable[[str], tuple[Callable, Callable]]):
        """Goes on in a run that was closed, or begins one.

        Args:
            begin: a run's identifier to its `send(values, step=step)` and `finish()`.
        """
        tracked.folder.mkdir(parents=True, exist_ok=True)
        self._path = tracked.folder / f"{tracked.name}.json"
        note = read_json(self._path) if self._path.exists() else {}
        if note.get("making") != tracked.making:
            note = {"making": tracked.making, "run": uuid.uuid4().hex, "last": -1}
        self._note = note
        self._send, self._finish = begin(note["run"])
        self._path.unlink(missing_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends the values of a step, unless they were sent before."""
        if step > self._note["last"]:
            self._send(values, step=step)
            self._note["last"] = step

    def close(self) -> None:
        """Waits until everything is sent, or kept on the disk to be sent."""
        self._finish()
        write_json(self._path, self._note)


def ask_for_key() -> None:
    """Has Weights & Biases look for its key and, at a terminal, ask for one that is missing."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online":
        with contextlib.suppress(wandb.Error):
            wandb.login()


def _begin_wandb(tracked: Tracked, run_id: str) -> tuple[Callable, Callable]:
    """A run of Weights & Biases; offline, in the tracker's folder, if the service is not there."""
    import wandb

    begin = partial(
        wandb.init,
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        group=_name_group(tracked),
        name=tracked.name,
        id=run_id,
        resume="allow",
        dir=tracked.workdir,  # it names the folder below itself
        config=dict(tracked.settings),
        settings=wandb.Settings(
            console="off", reinit="finish_previous", init_timeout=_WAIT, finish_timeout=_WAIT
        ),
    )
    try:
        run = begin()
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        later = f"wandb sync {tracked.folder}/offline-run-*"
        log(f"config.track='wandb': kept offline, for `{later}` ({reason})")
        wandb.teardown()  # its process holds on to the run that did not begin
        run = begin(mode="offline")
    return partial(run.log, commit=True), run.finish


def _begin_trackio(tracked: Tracked, run_id: str) -> tuple[Callable, Callable]:
    """A run of trackio, in its own database below the user's cache, or where its variables say."""
    import trackio

    group = _name_group(tracked)
    run = trackio.init(
        _PROJECT,
        name=f"{group} {tracked.name} {run_id[:8]}",
        group=group,
        config=dict(tracked.settings),
        resume="allow",
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return run.log, trackio.finish


def _name_group(tracked: Tracked) -> str:
    """The work folder's name, with those of the folders above that tell seeds and systems apart."""
    return "/".join(tracked.workdir.resolve().parts[-3:])


OPENERS: Mapping[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda tracked: Service(tracked, partial(_begin_wandb, tracked)),
    "trackio": lambda tracked: Service(tracked, partial(_begin_trackio, tracked)),
}
