"""Resident memory of the process: the peak of a part of a run, and giving back what is free."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

import jax

_PROCESS = Path("/proc/self")
# Resident bytes from which compiled programs are let go of. A program of 30 layers takes 50 to
# 100 MB, and SR-RAG's main job compiles some thirty; made again from the cache on the disk it takes
# a second.
CROWDED = 1_500_000_000


def start_peak() -> None:
    """Begins a new peak: `read_peak` leaves out what was resident before and is not any more.

    Only Linux can; elsewhere the peak is that of the whole process.
    """
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def read_peak() -> int:
    """The largest resident memory since `start_peak`, in bytes."""
    return _read_status("VmHWM")


def release_memory() -> None:
    """In a large process, frees compiled programs and what nothing refers to any more."""
    if _read_status("VmRSS") > CROWDED:
        free_programs()


def free_programs() -> None:
    """Frees compiled programs and what nothing refers to any more, and gives it to the system."""
    jax.clear_caches()
    gc.collect()
    _trim()


def return_freed() -> None:
    """In a large process, gives freed memory back to the system, which the C library keeps.

    It keeps more from batch to batch, between arrays in use. To have it keep less at all times
    (glibc's `mallopt`) took training steps a third longer.
    """
    if _read_status("VmRSS") > CROWDED:
        _trim()


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _read_status(name: str) -> int:
    with contextlib.suppress(OSError):
        if found := re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes
