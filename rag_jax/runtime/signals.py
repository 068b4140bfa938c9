"""Ctrl-C and SIGTERM: raised where they come, and again if that was lost.

Python ignores what is raised in a finaliser or a weak reference's callback, and JAX has many: of
eight signals that runs of SR-RAG were sent at random moments one was lost there.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rag_jax.runtime.errors import Preempted

_REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Preempted}
_noted: list[type[BaseException]] = []


def listen() -> None:
    """Has both signals raise from now on; one that the process was told to ignore stays ignored."""
    _noted.clear()
    for number in _REASONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)


def check() -> None:
    """Raises what came since `listen` and was lost, or else would have ended the run."""
    if _noted:
        raise _noted[0]


@contextlib.contextmanager
def hold() -> Iterator[list[type[BaseException]]]:
    """A list in which both signals leave what to raise, for whoever must not be interrupted.

    A training step donates its state's buffers, so between two steps is the only place where there
    is a state to save. A second signal acts at once, for when a step hangs.
    """
    held: list[type[BaseException]] = []
    if threading.current_thread() is not threading.main_thread():  # signals come to that one
        yield held
        return
    before = {number: signal.getsignal(number) for number in _REASONS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        print("\nstopping after this step and a checkpoint", file=sys.stderr)
        held.append(_REASONS[signal.Signals(number)])
        restore()

    for number in _REASONS:
        signal.signal(number, note)
    try:
        yield held
    finally:
        restore()


def _note(number: int, _: Any) -> None:
    reason = _REASONS[signal.Signals(number)]
    _noted.append(reason)
    raise reason
