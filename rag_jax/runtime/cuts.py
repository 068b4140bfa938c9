"""How many texts were cut: a warning of every call, or one of all calls of a piece of work."""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator

_Key = tuple[logging.Logger, str, int]

_lock = threading.Lock()  # passages are also found and read by threads
_open: list[dict[_Key, Counter[str]]] = []


def report_cut(logger: logging.Logger, unit: str, *, cut: int, count: int, max_length: int) -> None:
    """Warns how many of some texts were cut, if any; within `sum_cuts` it only counts them.

    Args:
        unit: what the texts are, in the plural.
        count: number of all texts.
        max_length: that they were cut to, in tokens.
    """
    with _lock:
        if _open:
            counts = _open[-1].setdefault((logger, unit, max_length), Counter())
            counts.update(cut=cut, count=count)
            return
    if cut:
        logger.warning("%d of %d %s were cut to %d tokens", cut, count, unit, max_length)


@contextlib.contextmanager
def sum_cuts() -> Iterator[None]:
    """Has the texts that are cut within it reported once, at its end, with their sums."""
    sums: dict[_Key, Counter[str]] = {}
    with _lock:
        _open.append(sums)
    try:
        yield
    finally:
        with _lock:
            _open[:] = [own for own in _open if own is not sums]  # equal ones may be open too
        for (logger, unit, max_length), counts in sums.items():
            report_cut(logger, unit, **counts, max_length=max_length)
