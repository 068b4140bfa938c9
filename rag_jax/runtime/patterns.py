"""Regular expressions from files and settings, which may take only a limited time to match."""

import math
import re
import time

import regex

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, show

_LONGEST = 10_000  # characters of a pattern
# The compiled pattern has a repeated part as often as the number after it says: 60 MB for these.
_REPEATS = 100_000
_SECONDS = 0.5  # of the processor; a pattern that does not backtrack takes 0.00001 for a name


class MatchTime:
    """The processor time that all patterns of one file may take together, for all names."""

    def __init__(self) -> None:
        self.left = _SECONDS


class NamePattern:
    """A regular expression for the names of a model's layers.

    Some patterns, such as `(a|a)*b`, take a time that doubles with every character of a name. No
    look at a pattern tells them all from harmless ones, and a limit on the time does.
    """

    def __init__(self, pattern: str, *, source: str, time: MatchTime):
        """A pattern, and where it comes from, for errors.

        Raises:
            RagJaxError: it is none of Python's regular expressions, is very long, or repeats
                something very often.
        """
        self._source, self._time = source, time
        if len(pattern) > _LONGEST:
            raise RagJaxError(
                f"{source}: a regular expression of {len(pattern):,} characters, more than the "
                f"limit of {_LONGEST:,}: write a shorter one"
            )
        if _count_repeats(pattern) > _REPEATS:
            raise RagJaxError(
                f"{source}: the regular expression has repeats of more than the limit of "
                f"{_REPEATS:,} in all: write * or + in the place of large numbers"
            )
        with parsing(source, show(pattern)):
            re.compile(pattern)  # which has no recursion, as regex has
            self._compiled = regex.compile(pattern)

    def fullmatch(self, name: str) -> bool:
        """Whether the pattern matches a whole name.

        Raises:
            RagJaxError: the time is up.
        """
        start = time.thread_time()
        try:
            if self._time.left <= 0:
                raise TimeoutError
            return self._compiled.fullmatch(name, timeout=self._time.left) is not None
        except TimeoutError:
            raise RagJaxError(
                f"{self._source}: to match the names of all layers takes more than the limit of "
                f"{_SECONDS} s: write a regular expression without nested repeats"
            ) from None
        finally:
            self._time.left -= time.thread_time() - start


def _count_repeats(pattern: str) -> int:
    """How often a part is there at most, if all repeats with numbers were nested."""
    counts = [1]
    for numbers in re.findall(r"\{([^{}]*)\}", pattern):
        for number in numbers.split(","):
            digits = "".join(filter(str.isdecimal, number))
            counts.append(max(1, int(digits[:9] or 1)))
    return math.prod(counts)
