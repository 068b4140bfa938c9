"""Lines of files, each with its place in the file, and the count of bad lines.

Only one line is in memory at a time, so a file may be larger than the memory.
"""

import codecs
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rag_jax.data.formats import files
from rag_jax.data.formats.files import open_data
from rag_jax.runtime.errors import RagJaxError

_logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Place of a record in a file, for error messages.

    Attributes:
        line: number of the first line of the record, counted from 1.
        item: number of the record, counted from 1; equal to `line` with one record per line.
    """

    path: Path
    line: int
    item: int

    def __str__(self) -> str:
        item = "" if self.item == self.line else f" (item {self.item})"
        return f"{self.path}:{self.line}{item}"


class BadLineError(RagJaxError):
    """Error for a line, or an item of an array, that violates the format."""


class BadLines:
    """Counter of skipped bad lines, with a limit.

    As a context manager, a counter skips the rest of a block at a BadLineError.

    Args:
        setting: name of the setting of the limit, for the error message; None if there is none.
        quiet: if True, no warning is logged, for reads that only detect a format.

    Attributes:
        count: number of bad lines so far.
        last: the last error; None without bad lines.
    """

    def __init__(
        self,
        limit: int = 0,
        setting: str | None = "config.data.bad_lines",
        *,
        quiet: bool = False,
    ):
        self._limit, self._setting, self._quiet = limit, setting, quiet
        self.count = 0
        self.last: BadLineError | None = None

    def skip(self, error: BadLineError) -> None:
        """Counts a bad line and logs a warning.

        Raises:
            RagJaxError: if the number of bad lines exceeds the limit.
        """
        self.count, self.last = self.count + 1, error
        if self.count > self._limit:
            raised = f"raise {self._setting}={self._limit}, the maximum number of bad lines to skip"
            other = raised if self._setting else "move the file away"
            raise RagJaxError(f"{error}; fix the line, or {other}") from None
        if not self._quiet:
            counts = self.count, self._limit
            _logger.warning("%s: skipped, bad line %d of at most %d", error, *counts)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> bool:
        if is_bad := isinstance(error, BadLineError):
            self.skip(error)
        return is_bad


def read_lines(path: Path, bad: BadLines) -> Iterator[tuple[Place, str]]:
    """Yields the lines that are not blank, without line ends. Lines must be UTF-8.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    for number, line in decode_lines(path, bad):
        if line.strip():
            yield Place(path, number, number), line.rstrip("\r\n")


def decode_lines(path: Path, bad: BadLines) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of every line, with its line end. Lines must be UTF-8.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    with open_data(path) as file:
        number = 0
        while line := file.readline(files.LONGEST):
            number += 1
            if len(line) == files.LONGEST:
                raise RagJaxError(f"{path}:{number}: is longer than {files.LONGEST >> 20} MiB")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                bad.skip(BadLineError(f"{path}:{number}: is not UTF-8 ({error.reason})"))
                continue
            yield number, text
