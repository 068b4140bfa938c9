"""Ctrl-C and SIGTERM: raised where they come, and again if that was lost.

Python ignores what is raised in a finaliser or a weak reference's callback, and JAX has many: of
eight signals that runs of SR-RAG were sent at random moments one was lost there.
"""

import signal
from typing import Any

from rag_jax.errors import Stopped

_REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Stopped}
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


def _note(number: int, _: Any) -> None:
    reason = _REASONS[signal.Signals(number)]
    _noted.append(reason)
    raise reason
