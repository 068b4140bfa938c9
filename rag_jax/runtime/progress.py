"""Progress bars and log lines for whoever watches a run; the first process alone writes them."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tqdm import tqdm

from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.terminal import show_controls, write_text

# Opens a bar: `progress(total, unit=..., initial=...)`, as `show_progress` does for one name.
Progress = Callable[..., AbstractContextManager[tqdm]]


_UP = "\x1b[A"  # what a bar below another one writes to get to its line
_EVERY = 30.0  # seconds between two lines without a terminal
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}{postfix}, {remaining} left"


class _Lines:
    """A file that gives what a progress bar draws as lines of the log."""

    def write(self, text: str) -> None:
        if line := text.replace(_UP, "").strip():
            log(line)

    def flush(self) -> None: ...


@contextlib.contextmanager
def show_progress(name: str, total: int, *, unit: str, initial: int = 0) -> Iterator[tqdm]:
    """A progress bar with the time left; without a terminal, lines.

    Without a terminal there is a line at the start and at the end, and every 30 seconds one with
    the number that is done, the rate, what the bar has as its postfix, and the time left. Of
    `total` units, named in the plural, an earlier run did the first `initial`.
    """
    name = show_controls(name, one_line=True)
    options = {"total": total, "initial": initial, "desc": name, "unit": f" {unit}"}
    if sys.stderr.isatty() and is_first():
        with tqdm(**options) as bar:
            yield bar
        return
    log(f"{name}: {total} {unit}" + (f", {initial} done before" if initial else ""))
    start = time.monotonic()
    lines = {"delay": _EVERY, "mininterval": _EVERY, "maxinterval": _EVERY, "miniters": 1}
    lines |= {"file": _Lines(), "bar_format": _LINE, "leave": False, "disable": not is_first()}
    with tqdm(**options, **lines) as bar:
        yield bar
    log(f"{name}: {total} {unit} in {time.monotonic() - start:.1f} s")


def log(line: str) -> None:
    """Writes one line to standard error, from the first process."""
    if is_first():
        write_text(line, sys.stderr)
