"""Lines and records of plain and gzip files, each with its place in the file.

Only one line or one array item is in memory at a time, so a file may be larger than the memory.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rag_jax.runtime.errors import RagJaxError

LONGEST = 1 << 26  # maximum length of a line in bytes, or of an array item in characters
_CHUNK = 1 << 16  # characters read at a time
_CUT = 16  # characters; the keywords, numbers and escapes of JSON that a chunk may cut are shorter
_SPACE = re.compile(r"[ \t\r\n]*")

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
        setting: name of the setting of the limit, for the error message.
        quiet: if True, no warning is logged, for reads that only detect a format.
    """

    def __init__(
        self, limit: int = 0, setting: str = "config.data.bad_lines", *, quiet: bool = False
    ):
        self._limit, self._setting, self._count, self._quiet = limit, setting, 0, quiet

    def skip(self, error: BadLineError) -> None:
        """Counts a bad line and logs a warning.

        Raises:
            RagJaxError: if the number of bad lines exceeds the limit.
        """
        self._count += 1
        if self._count > self._limit:
            raise RagJaxError(
                f"{error}; fix the line, or raise {self._setting}={self._limit}, the maximum "
                "number of bad lines to skip"
            ) from None
        if not self._quiet:
            counts = self._count, self._limit
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
    for number, line in _decode_lines(path, bad):
        if line.strip():
            yield Place(path, number, number), line.rstrip("\r\n")


def read_rows(path: Path, bad: BadLines) -> Iterator[tuple[Place, list[str]]]:
    """Yields the rows of a table, including the heading.

    Fields are separated by tabs, or by commas if the first line has no tab. Fields may be quoted as
    in CSV; a quoted field may contain separators and line ends. Blank rows are left out.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    csv.field_size_limit(LONGEST)
    has_tabs = "\t" in peek_text(path).split("\n")[0]
    lines = _NumberedLines(_decode_lines(path, bad))
    rows = csv.reader(lines, delimiter="\t" if has_tabs else ",")
    while True:
        lines.first = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            bad.skip(BadLineError(f"{path}:{lines.first}: is not a row of a table ({error})"))
            continue
        if any(field.strip() for field in row):
            yield Place(path, lines.first, lines.first), row


def read_records(path: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the records of a file of JSON lines, a JSON array, or a table.

    Files with a name that ends in `.tsv`, `.csv`, `.tsv.gz` or `.csv.gz` are tables. A record of a
    table is a row, with the fields of the heading as keys. Invalid JSON inside an array is an error
    regardless of the limit of bad lines, because the start of the next item is unknown.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    if is_table(path):
        yield from _read_table(path, bad)
    elif _peek(path)[:1] == b"[":
        yield from read_items(path, "")
    else:
        for place, line in read_lines(path, bad):
            with bad:
                record = parse_json(line, place)
                if not isinstance(record, dict):
                    raise BadLineError(f"{place}: must be an object")
                yield place, record


def read_items(path: Path, key: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the objects of an array of a JSON document, the whole document if `key` is empty.

    The key must be near the beginning of the document.

    Raises:
        RagJaxError: if the file cannot be read, or the array is missing or not JSON.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse)
    with _open(path) as raw, io.TextIOWrapper(raw, "utf-8-sig") as file:
        text, line, item = file.read(_CHUNK), 1, 0
        opening = re.search(rf'"{key}"\s*:\s*\[' if key else r"\[", text)
        if opening is None:
            raise RagJaxError(f"{path}: has no array {key!r} at its beginning")
        at, has_comma = opening.end(), True
        line += text.count("\n", 0, at)
        while True:
            space = _SPACE.match(text, at)
            line += text.count("\n", at, space.end())
            at = space.end()
            if at == len(text):
                text, at = file.read(_CHUNK), 0
                if not text:
                    raise RagJaxError(
                        f"{path}:{line}: the array has no end: download the file again"
                    )
            elif text[at] == "]" and (item == 0 or not has_comma):
                return
            elif text[at] == "," and not has_comma:
                at, has_comma = at + 1, True
            elif not has_comma:
                raise RagJaxError(f"{path}:{line}: is not JSON (a comma must follow item {item})")
            else:
                place = Place(path, line, item + 1)
                if text[at] != "{":
                    raise RagJaxError(f"{place}: must be an object")
                try:
                    record, end = decoder.raw_decode(text, at)
                except (ValueError, RecursionError) as error:
                    # An error near the end of the text may only mean that the chunk cuts the item.
                    is_cut = isinstance(error, json.JSONDecodeError) and (
                        error.msg.startswith("Unterminated") or error.pos > len(text) - _CUT
                    )
                    length = len(text) - at
                    chunk = file.read(max(_CHUNK, length)) if is_cut and length < LONGEST else ""
                    if not chunk:
                        raise RagJaxError(f"{place}: is not JSON ({error})") from None
                    text, at = text[at:] + chunk, 0
                    continue
                yield place, record
                line += text.count("\n", at, end)
                at, item, has_comma = end, item + 1, False


def parse_json(text: str, place: Place) -> Any:
    """Parses JSON, without the extensions NaN and Infinity.

    Raises:
        BadLineError: if the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"{place}: is not JSON ({error})") from None


def is_table(path: Path) -> bool:
    """Returns whether the name of a file is the name of a table."""
    return Path(path.name.removesuffix(".gz")).suffix in (".tsv", ".csv")


def peek_text(path: Path) -> str:
    """Returns the first characters of a file, without leading white space and invalid UTF-8."""
    return _peek(path).decode(errors="ignore")


class _NumberedLines:
    """Iterator over the texts of numbered lines.

    `first` is the number of the first line read since `first` was set to 0: the line on which a row
    begins, because a row may span several lines.
    """

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self._lines, self.first = lines, 0

    def __iter__(self) -> Iterator[str]:
        for number, text in self._lines:
            self.first = self.first or number
            yield text


def _read_table(path: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    rows = read_rows(path, bad)
    _, names = next(rows, (None, []))
    for place, row in rows:
        if len(row) != len(names):
            counts = f"has {len(row)} fields, but the heading has {len(names)}"
            bad.skip(BadLineError(f"{place}: {counts}"))
        else:
            yield place, dict(zip(names, row, strict=True))


def _decode_lines(path: Path, bad: BadLines) -> Iterator[tuple[int, str]]:
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise RagJaxError(f"{path}:{number}: is longer than {LONGEST >> 20} MiB")
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise RagJaxError(f"{path}: is UTF-16: save it as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                bad.skip(BadLineError(f"{path}:{number}: is not UTF-8 ({error.reason})"))
                continue
            yield number, text


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """Opens a file for reading bytes, decompressed if the content starts with the gzip magic."""
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with io.BufferedReader(gzip.GzipFile(fileobj=file), _CHUNK) as decompressed:
                    yield decompressed
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RagJaxError(
            f"{path}: is damaged or cut short ({error}): download the file again"
        ) from None
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None


def _peek(path: Path) -> bytes:
    with _open(path) as file:
        return file.peek(_CHUNK)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
