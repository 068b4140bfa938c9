"""The runs of a comparison, each in a process of its own, one after the other."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rag_jax.comparison.child import DONE
from rag_jax.runtime.files import to_json


def run_system(system: str, settings: Any, folder: Path, *, overwrite: bool) -> str | None:
    """Runs a system in a work folder; what an earlier run made there is kept.

    A signal that ends this process is passed on, once, so that the run saves what it has.

    Args:
        settings: the system's whole settings.
        overwrite: whether a finished run of other settings may be overwritten.

    Returns:
        What ended the run early, as one line; None if the run has finished.
    """
    read, write = os.pipe()
    command = [sys.executable, "-m", "rag_jax.comparison.child", system, str(folder), str(write)]
    # In a group of its own, or Ctrl-C would reach the run twice: the second ends it unsaved.
    child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(write,), process_group=0)
    os.close(write)
    said = ""
    try:
        with open(read, encoding="utf-8") as outcome, contextlib.suppress(BrokenPipeError):
            child.stdin.write(f"{to_json([settings, overwrite])}\n".encode())
            child.stdin.flush()
            said = outcome.read()
        status = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    return None if said == DONE else said or _explain(status)


def _explain(status: int) -> str:
    """What ended a process that said nothing, from its exit status."""
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), as for want of memory; the same command continues"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}; the same command continues"
    return f"ended early with status {status}; the same command continues"
