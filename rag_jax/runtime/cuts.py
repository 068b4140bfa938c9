"""How many texts were cut: a warning of every call, or the first and the sum of a piece of work."""

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator

_Key = tuple[logging.Logger, str, int]

_lock = threading.Lock()  # passages are also found and read by threads
_open: list[dict[_Key, Counter[str]]] = []


def report_cut(logger: logging.Logger, unit: str, *, cut: int, count: int, max_length: int) -> None:
    """Warns how many of some texts were cut, if any; within `sum_cuts` of the first call alone.

    Args:
        unit: what the texts are, in the plural.
        count: number of all texts.
        max_length: that they were cut to, in tokens.
    """
    with _lock:
        is_first = True
        if _open:
            counts = _open[-1].setdefault((logger, unit, max_length), Counter())
            is_first = not counts["cut"]
            counts.update(cut=cut, count=count, calls=1)
    if cut and is_first:
        _warn(logger, unit, cut, count, max_length)


@contextlib.contextmanager
def sum_cuts() -> Iterator[None]:
    """Has texts that are cut within it reported by the first call, and at its end with their sums.

    So it is known early that texts are cut, and batches are no lines of a log. What is cut within a
    second `sum_cuts` is not in the sums of the first.
    """
    sums: dict[_Key, Counter[str]] = {}
    with _lock:
        _open.append(sums)
    try:
        yield
    finally:
        with _lock:
            _open.pop()
        for (logger, unit, max_length), counts in sums.items():
            if counts["cut"] and counts["calls"] > 1:
                _warn(logger, unit, counts["cut"], counts["count"], max_length)


def _warn(logger: logging.Logger, unit: str, cut: int, count: int, max_length: int) -> None:
    logger.warning("%d of %d %s were cut to %d tokens", cut, count, unit, max_length)
