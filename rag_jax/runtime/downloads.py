"""Limits of downloads: a server that sends too much, too slowly or nothing is left."""

import time

SILENCE = 60  # seconds without a byte from a package registry
ANSWER = 10  # seconds for an answer of the hub
# The lowest rate, in bytes a second on average, after the first `SILENCE` seconds.
SLOWEST = 1000
# The most bytes of a wheel whose size is not pinned, and of all files of a model.
LARGEST_WHEEL, LARGEST_MODEL = 8 << 30, 1 << 40


class Endless(Exception):
    """The download is too large or too slow; the text says which limit it passes."""


class Meter:
    """Counts the bytes of a download."""

    def __init__(self, room: int):
        """`room` is the most bytes that may come."""
        self._room, self._received, self._start = room, 0, time.monotonic()

    def add(self, count: int) -> None:
        """Counts bytes that came.

        Raises:
            Endless: there are more than there is room for, or they come too slowly.
        """
        self._received += count
        if self._received > self._room:
            raise Endless("more bytes come than it should have")
        seconds = time.monotonic() - self._start
        if seconds > SILENCE and self._received < SLOWEST * seconds:
            raise Endless(f"less than {SLOWEST:,} bytes a second come")
