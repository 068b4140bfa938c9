"""Ctrl-C and SIGTERM: the end of a command with one line and one status, whenever they come.

A command has three parts. While it starts, there is nothing to save, and a signal ends the process
at once: an exception in the middle of an import would come out as some other error. While it works,
the first signal is raised as an exception, so that a run can save what it has; a second signal ends
the process at once. While it ends, signals are ignored.

Python ignores exceptions in finalisers and in callbacks of weak references, and JAX has many of
both: of eight signals sent to SR-RAG runs at random moments, one was lost this way. `check` raises
such a lost exception again.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rag_jax.runtime.errors import Preempted
from rag_jax.runtime.terminal import write_text

PATIENCE = 1.5  # seconds from a signal to the end of a command that compiles and saves nothing
_REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Preempted}
_noted: list[type[BaseException]] = []
_line, _working = "interrupted", False
_statuses: dict[type[BaseException], int] = {}
_dealt_with = 0  # number of times that a signal was dealt with


def start(line: str, *, resumes: bool = True) -> None:
    """Installs the handlers of a command. Until `begin_work` they end the process with a line.

    A signal that the process ignores stays ignored.

    Args:
        resumes: whether the same command continues, so that SIGTERM is no failure: status 0. Else
            its status is 143, as a shell reports SIGTERM.
    """
    global _line, _working
    _line, _working = line, False
    _statuses.update({KeyboardInterrupt: 130, Preempted: 0 if resumes else 143})
    _noted.clear()
    _install(_handle)
    sys.unraisablehook = _leave_out_lost


def begin_work() -> None:
    """Has the first signal from now on raise KeyboardInterrupt (SIGINT) or Preempted (SIGTERM).

    The handlers of a program that did not call `start` stay its own.
    """
    global _working, _dealt_with
    _working = True
    _dealt_with += 1
    _noted.clear()


def end(reason: type[BaseException], line: str) -> int:
    """Ends a command that a signal stopped: ignores further ones, and prints the line.

    Returns:
        The exit status.
    """
    global _dealt_with
    _dealt_with += 1
    # A handler of our own would be taken down before the interpreter has ended; this one is not.
    _install(signal.SIG_IGN)
    write_text(line, sys.stderr)
    return _statuses[reason]


@contextlib.contextmanager
def leave_within(seconds: float) -> Iterator[None]:
    """Has a signal that is not dealt with in time end the process, whatever the block is doing.

    Python runs a handler between two of its own instructions, so that a call that compiles for ten
    seconds holds it up. For commands that have nothing to save.
    """
    woken, waking = socket.socketpair()
    waking.setblocking(False)

    def watch() -> None:
        while number := woken.recv(1):
            before = _dealt_with
            time.sleep(seconds)
            if _dealt_with == before and number[0] in _REASONS and waking.fileno() >= 0:
                _leave(_REASONS[signal.Signals(number[0])])

    earlier = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        waking.close()  # which ends the thread


def noted() -> type[BaseException] | None:
    """The exception of the first signal since `begin_work`; None if there was no signal."""
    return _noted[0] if _noted else None


def check() -> None:
    """Raises the exception of the first signal since `begin_work`, if any.

    If the exception was not lost, the run has already ended.
    """
    if _noted:
        raise _noted[0]


@contextlib.contextmanager
def hold() -> Iterator[list[type[BaseException]]]:
    """Defers both signals: yields a list that gets the exception to raise, in place of raising.

    A training step donates its state's buffers, so a state can be saved only between two steps. A
    second signal raises at once, in case a step hangs. A signal that the process ignores stays
    ignored.
    """
    held: list[type[BaseException]] = []
    # Python delivers signals to the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    handlers = {number: signal.getsignal(number) for number in _REASONS}
    handlers = {n: handler for n, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        write_text("\nstopping after this step and a checkpoint", sys.stderr)
        held.append(_REASONS[signal.Signals(number)])
        restore()

    for number in handlers:
        signal.signal(number, note)
    try:
        yield held
    finally:
        restore()


def _install(handler: Callable | signal.Handlers) -> None:
    for number in _REASONS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _leave_out_lost(unraisable: Any) -> None:
    """Shows an exception that Python ignores, but for that of a signal, which `check` raises."""
    if unraisable.exc_type not in _noted:
        sys.__unraisablehook__(unraisable)


def _handle(number: int, _: Any) -> None:
    reason = _REASONS[signal.Signals(number)]
    if _noted or not _working:
        _leave(_noted[0] if _noted else reason)
    _noted.append(reason)
    raise reason


def leave(status: int) -> None:
    """Ends the process at once, after what was printed."""
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never open
            file.flush()
    os._exit(status)


def _leave(reason: type[BaseException]) -> None:
    """Ends the process at once."""
    # Not `print`, in the middle of which the signal may have come.
    with contextlib.suppress(OSError):
        os.write(2, f"{_line}\n".encode())
    os._exit(_statuses[reason])
