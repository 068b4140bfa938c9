"""Ctrl-C and SIGTERM: raised as exceptions on arrival, and again if the exception was lost.

Python ignores exceptions in finalisers and in callbacks of weak references, and JAX has many of
both: of eight signals sent to SR-RAG runs at random moments, one was lost this way.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from rag_jax.runtime.errors import Preempted
from rag_jax.runtime.terminal import write_text

_REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Preempted}
_noted: list[type[BaseException]] = []


def listen() -> None:
    """Installs handlers that raise KeyboardInterrupt on SIGINT and Preempted on SIGTERM.

    A signal that the process ignores stays ignored.
    """
    _noted.clear()
    for number in _REASONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _note)


def check() -> None:
    """Raises the exception of the first signal since `listen`, if any.

    If the exception was not lost, the run has already ended.
    """
    if _noted:
        raise _noted[0]


@contextlib.contextmanager
def hold() -> Iterator[list[type[BaseException]]]:
    """Defers both signals: yields a list that gets the exception to raise, in place of raising.

    A training step donates its state's buffers, so a state can be saved only between two steps. A
    second signal raises at once, in case a step hangs.
    """
    held: list[type[BaseException]] = []
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    handlers = {number: signal.getsignal(number) for number in _REASONS}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        write_text("\nstopping after this step and a checkpoint", sys.stderr)
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
