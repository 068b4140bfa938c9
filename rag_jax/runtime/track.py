"""Trackers: where a run's curves go besides its own files, as TensorBoard's events or to a service.

A tracker is told what `log.jsonl` has and changes nothing: no stage depends on it, and a stage goes
on without a tracker that fails. `rag_jax.runtime.trackers` has those that there are.
"""

import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import stream_jsonl
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.progress import log
from rag_jax.runtime.trackers import NONE, OPENERS, PACKAGES, Tracked, Tracker, ask_for_key

_PRESENT: ContextVar[Tracked | None] = ContextVar("tracked", default=None)


def find_tracker(settings: Any) -> str:
    """The tracker that a run's settings name; `NONE` if they have no field "track"."""
    return getattr(settings, "track", NONE)


def check_tracker(settings: Any) -> None:
    """Looks whether a run can be tracked by its settings, before there is any work to lose.

    Weights & Biases asks for its key here, if there is none and a terminal to ask at.

    Raises:
        RagJaxError: the tracker's package is not installed.
    """
    tracker = find_tracker(settings)
    if tracker == NONE:
        return
    if importlib.util.find_spec(PACKAGES[tracker]) is None:
        raise RagJaxError(
            f"config.track={tracker!r}: {PACKAGES[tracker]} is not installed; install rag_jax with "
            f"the extra {tracker}: pip install 'rag_jax[{tracker}]'"
        )
    if tracker == "wandb" and is_first():
        ask_for_key()


@contextlib.contextmanager
def tracking(tracked: Tracked) -> Iterator[None]:
    """Within the block, `open_tracker` gives the tracker of this stage."""
    token = _PRESENT.set(tracked)
    try:
        yield
    finally:
        _PRESENT.reset(token)


@contextlib.contextmanager
def open_tracker(log_path: Path | None = None) -> Iterator[Tracker]:
    """Opens the tracker of the present stage; in all processes but the first it takes nothing.

    No error of the tracker leaves the block. After the first one the rest of the stage is not
    tracked, and a line says so.

    Args:
        log_path: the stage's log, of the steps that are taken already: JSON lines with a "step".
            The tracker has these steps when it is open, and no later ones.
    """
    tracked = _PRESENT.get() if is_first() else None
    guard = _Guard(None if tracked is None or tracked.tracker == NONE else tracked)
    try:
        guard.open()
        if log_path is not None and guard.tracker is not None:
            for line in stream_jsonl(log_path):
                guard.log(line, line["step"])
        yield guard
    finally:
        guard.close()


class _Guard:
    """A tracker that is given up at its first error."""

    def __init__(self, tracked: Tracked | None):
        self.tracked = tracked
        self.tracker: Tracker | None = None

    def open(self) -> None:
        if self.tracked is not None:
            with self._giving_up():
                self.tracker = OPENERS[self.tracked.tracker](self.tracked)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        if self.tracker is not None:
            # Infinities and NaN, which are None in a log, are no points of a curve.
            known = {name: value for name, value in values.items() if value is not None}
            named = {
                f"{self.tracked.name}/{name}": float(value)
                for name, value in known.items()
                if name != "step" and math.isfinite(value)
            }
            with self._giving_up():
                self.tracker.log(named, step)

    def close(self) -> None:
        if self.tracker is not None:
            with self._giving_up():
                tracker, self.tracker = self.tracker, None
                tracker.close()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            # Libraries greet on standard output, which is for results.
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            failed, self.tracker = self.tracker, None
            if failed is not None:
                with contextlib.suppress(Exception):
                    failed.close()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log(
                f"config.track={self.tracked.tracker!r}: stage {self.tracked.name} goes on without "
                f"({reason})"
            )
