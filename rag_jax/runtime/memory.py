"""Resident memory of the process: the peak of a part of a run, and giving back what is free."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

_PROCESS = Path("/proc/self")


def start_peak() -> None:
    """Begins a new peak: `read_peak` leaves out what was resident before and is not any more.

    Only Linux can; elsewhere the peak is that of the whole process.
    """
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def read_peak() -> int:
    """The largest resident memory since `start_peak`, in bytes."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


def release_memory() -> None:
    """Frees what nothing refers to any more, and gives the memory back to the system.

    glibc keeps freed memory for itself: after a stage that trains these are gigabytes.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
