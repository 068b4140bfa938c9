"""Progress bars and log lines for whoever watches a run; the first process alone writes them."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tqdm import tqdm

from rag_jax.runtime.hosts import is_first

# Opens a bar: `progress(total, unit=..., initial=...)`, as `show_progress` does for one name.
Progress = Callable[..., AbstractContextManager[tqdm]]


@contextlib.contextmanager
def show_progress(name: str, total: int, *, unit: str, initial: int = 0) -> Iterator[tqdm]:
    """A progress bar with the time left; without a terminal, one line at the start and the end.

    Of `total` units, named in the plural, an earlier run did the first `initial`.
    """
    terminal = sys.stderr.isatty() and is_first()
    if not terminal:
        log(f"{name}: {total} {unit}" + (f", {initial} done before" if initial else ""))
    start = time.monotonic()
    with tqdm(
        total=total, initial=initial, desc=name, unit=f" {unit}", disable=not terminal
    ) as bar:
        yield bar
    if not terminal:
        log(f"{name}: {total} {unit} in {time.monotonic() - start:.1f} s")


def log(line: str) -> None:
    """Writes one line to standard error, from the first process."""
    if is_first():
        print(line, file=sys.stderr, flush=True)
