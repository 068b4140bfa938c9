"""Lines of files, plain or gzip, and the records in them, each with its place.

A line or an item of an array is in memory at a time, so a file may be larger than the memory.
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

LONGEST = 1 << 26  # bytes of a line, or characters of an item
_CHUNK = 1 << 16
_CUT = 16  # characters: no word, number or escape of JSON that a chunk cuts is longer
_SPACE = re.compile(r"[ \t\r\n]*")

_logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a record is: the line it begins on, and its number in the file; both from 1."""

    path: Path
    line: int
    item: int

    def __str__(self) -> str:
        item = "" if self.item == self.line else f" (item {self.item})"
        return f"{self.path}:{self.line}{item}"


class BadLineError(RagJaxError):
    """A line, or an item of an array, that is not as its format has it."""


class BadLines:
    """Counts the bad lines that are skipped, and stops at one too many.

    Args:
        limit: so many may be skipped.
        setting: what sets the limit, for the message.
        quiet: whether they are not named, as where a file is only looked at.
    """

    def __init__(
        self, limit: int = 0, setting: str = "config.data.bad_lines", *, quiet: bool = False
    ):
        self._limit, self._setting, self._count, self._quiet = limit, setting, 0, quiet

    def skip(self, error: BadLineError) -> None:
        """Names a bad line in a warning.

        Raises:
            RagJaxError: there are more than the limit.
        """
        self._count += 1
        if self._count > self._limit:
            raise RagJaxError(
                f"{error}; mend it, or raise {self._setting}={self._limit}, which lets so many bad "
                "lines pass"
            ) from None
        if not self._quiet:
            _logger.warning(
                "%s: skipped, bad line %d of at most %d", error, self._count, self._limit
            )


def read_lines(path: Path, bad: BadLines) -> Iterator[tuple[Place, str]]:
    """Every line that is not blank, without its end; those that are not UTF-8 are bad.

    Raises:
        RagJaxError: the file cannot be read, or `bad` says so.
    """
    for number, line in _decode_lines(path, bad):
        if line.strip():
            yield Place(path, number, number), line.rstrip("\r\n")


def read_rows(path: Path, bad: BadLines) -> Iterator[tuple[Place, list[str]]]:
    """Every row of a table, its fields set apart by tabs (or, where it has none, commas).

    Fields may be quoted as in CSV, and then hold tabs and line ends.

    Raises:
        RagJaxError: as `read_lines` does.
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
            bad.skip(BadLineError(f"{path}:{lines.first}: is no row of a table ({error})"))
            continue
        if any(field.strip() for field in row):
            yield Place(path, lines.first, lines.first), row


def read_records(path: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every object of JSON lines or of one JSON array; of a table, one a row by the heading.

    What ends in `.tsv` or `.csv`, with or without `.gz` behind it, is a table. In an array whatever
    is not JSON ends the reading, for the rest of it cannot be told from it.

    Raises:
        RagJaxError: as `read_lines` does.
    """
    if is_table(path):
        yield from _read_table(path, bad)
    elif _peek(path)[:1] == b"[":
        yield from _read_array(path, "")
    else:
        for place, line in read_lines(path, bad):
            try:
                record = parse_json(line, place)
                if not isinstance(record, dict):
                    raise BadLineError(f"{place}: must be an object")
            except BadLineError as error:
                bad.skip(error)
                continue
            yield place, record


def read_items(path: Path, key: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every object of the array under `key`, the first such key of a JSON document.

    Raises:
        RagJaxError: the file cannot be read, or the array is not there or not JSON.
    """
    return _read_array(path, key)


def parse_json(text: str, place: Place) -> Any:
    """The value that a text is in JSON; NaN and infinities are none.

    Raises:
        BadLineError: it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"{place}: is not JSON ({error})") from None


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    return Path(path.name.removesuffix(".gz")).suffix in (".tsv", ".csv")


def peek_text(path: Path) -> str:
    """The beginning of a file that is not white space, as far as it is UTF-8."""
    return _peek(path).decode(errors="ignore")


class _NumberedLines:
    """The texts of numbered lines; `first` is the number of the first one since it was set to 0."""

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
            error = f"{place}: has {len(row)} fields, and the heading {len(names)}"
            bad.skip(BadLineError(error))
        else:
            yield place, dict(zip(names, row, strict=True))


def _read_array(path: Path, key: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The objects of an array that is the document or is under its key."""
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
                    raise RagJaxError(f"{path}:{line}: the array has no end: fetch the file again")
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
                    is_cut = isinstance(error, json.JSONDecodeError) and (
                        error.msg.startswith("Unterminated") or error.pos > len(text) - _CUT
                    )
                    held = len(text) - at
                    more = file.read(max(_CHUNK, held)) if is_cut and held < LONGEST else ""
                    if not more:
                        raise RagJaxError(f"{place}: is not JSON ({error})") from None
                    text, at = text[at:] + more, 0
                    continue
                yield place, record
                line += text.count("\n", at, end)
                at, item, has_comma = end, item + 1, False


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
    """The bytes of a file, unpacked where it begins as gzip does."""
    try:
        with open(path, "rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with io.BufferedReader(gzip.GzipFile(fileobj=file), _CHUNK) as unpacked:
                    yield unpacked
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RagJaxError(f"{path}: is damaged or cut short ({error}): fetch it again") from None
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None


def _peek(path: Path) -> bytes:
    with _open(path) as file:
        return file.peek(_CHUNK)[:4096].removeprefix(codecs.BOM_UTF8).lstrip()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
