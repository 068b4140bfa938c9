"""Rows of tables, whose fields are either quoted as in CSV, or hold quotes like any character.

A table says nowhere whether its fields are quoted. A field that only seems quoted would join all
rows up to the next quote, so the whole table is looked through before the first row is read.
"""

import collections
import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag_jax.data.formats.files import LONGEST, find_suffix, peek_text
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, decode_lines
from rag_jax.runtime.errors import RagJaxError


def is_table(path: Path) -> bool:
    """Returns whether the name of a file is the name of a table."""
    return find_suffix(path) in (".tsv", ".csv") and not path.is_dir()


def read_heading(path: Path) -> list[str]:
    """Returns the fields of the first row that is not blank; none if the table is empty.

    Raises:
        RagJaxError: if the file cannot be read.
    """
    separator = _find_separator(path)
    for _, line in decode_lines(path, BadLines(sys.maxsize, quiet=True)):
        if line.strip():
            try:
                return next(csv.reader([line], delimiter=separator, strict=True))
            except csv.Error:
                return line.rstrip("\r\n").split(separator)
    return []


def read_rows(path: Path, bad: BadLines) -> Iterator[tuple[Place, list[str]]]:
    """Yields the rows of a table, including the heading.

    Fields are separated by tabs, or by commas if the first line has no tab. If the fields are
    quoted as in CSV, a field may contain separators and line ends. Blank rows are left out.

    Raises:
        RagJaxError: if the file cannot be read, has too many bad lines, or is quoted in part.
    """
    csv.field_size_limit(LONGEST)
    separator = _find_separator(path)
    quoting = csv.QUOTE_MINIMAL if _is_quoted(path, separator) else csv.QUOTE_NONE
    lines = _RowLines(decode_lines(path, bad))
    for row in _parse_rows(lines, delimiter=separator, quoting=quoting):
        if isinstance(row, csv.Error):
            bad.skip(BadLineError(f"{path}:{lines.first}: is not a row of a table ({row})"))
        elif any(field.strip() for field in row):
            yield Place(path, lines.first, lines.first), row


def read_table(path: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the rows of a table as records, with the fields of the heading as keys.

    An empty field is null: a table has no other.

    Raises:
        RagJaxError: as `read_rows` does, or if two columns have the same name.
    """
    rows = read_rows(path, bad)
    _, names = next(rows, (None, []))
    counts = collections.Counter(filter(None, names))
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise RagJaxError(f"{path}: two columns have the name {repeated[0]!r}: rename one")
    for place, row in rows:
        if len(row) != len(names):
            counts = f"has {len(row)} fields, but the heading has {len(names)}"
            bad.skip(BadLineError(f"{place}: {counts}"))
        elif [field.strip("\ufeff") for field in row] == names:  # from a file that was appended
            bad.skip(BadLineError(f"{place}: is the heading again: remove the row"))
        else:
            yield place, {name: field or None for name, field in zip(names, row, strict=True)}


def _find_separator(path: Path) -> str:
    return "\t" if "\t" in peek_text(path).split("\n")[0] else ","


class _RowLines:
    """Iterator over the texts of numbered lines, with the lines of the row that is being read.

    Attributes:
        texts: lines read since `texts` was emptied: a row may span several lines.
        first: number of the first of them.
        only_quotes: whether rows without a quote are left out.
    """

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self._lines, self.first, self.only_quotes = lines, 0, False
        self.texts: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for number, text in self._lines:
            if not self.texts:
                if self.only_quotes and '"' not in text:
                    continue
                self.first = number
            self.texts.append(text)
            yield text


def _parse_rows(lines: _RowLines, **dialect: Any) -> Iterator[list[str] | csv.Error]:
    """Yields each row's fields, or why they are none; `lines` has the lines of that row."""
    rows = csv.reader(lines, **dialect)
    while True:
        lines.texts = []
        try:
            row: list[str] | csv.Error = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        yield row


@dataclass
class _Evidence:
    """What the rows of a table tell about its quotes; numbers of lines, 0 for none.

    Attributes:
        quoted: a row that can only be read as quoted: with a doubled quote, separator or line end
            in a quoted field, or a heading that is quoted throughout.
        broken: a row that cannot be read as quoted: its quote has no end, or text follows the end.
        bare: a row with a quote within a field that is not quoted, as programs never write CSV.
        joined: lines that are one row if quoted, and as many complete rows if not.
    """

    quoted: int = 0
    broken: int = 0
    bare: int = 0
    joined: int = 0


def _is_quoted(path: Path, separator: str) -> bool:
    evidence = _gather_evidence(path, separator)
    if evidence.broken and evidence.quoted:
        raise RagJaxError(
            f"{path}:{evidence.broken}: a field begins with a quote that is not closed, but line "
            f"{evidence.quoted} is quoted as in CSV: double the quotes within quoted fields"
        )
    if evidence.joined and not (evidence.quoted or evidence.broken or evidence.bare):
        raise RagJaxError(
            f"{path}:{evidence.joined}: begins a quoted field over several lines, or several rows "
            "with unquoted fields: quote all fields, or write the table as JSON lines"
        )
    return bool(evidence.quoted) or not (evidence.broken or evidence.bare)


def _gather_evidence(path: Path, separator: str) -> _Evidence:
    evidence, width = _Evidence(), 0
    lines = _RowLines(decode_lines(path, BadLines(sys.maxsize, quiet=True)))
    for row in _parse_rows(lines, delimiter=separator, strict=True):
        if isinstance(row, csv.Error):
            if any('"' in text for text in lines.texts):
                evidence.broken = evidence.broken or lines.first
            continue
        is_heading, width = not width, width or len(row)
        lines.only_quotes = width > 0
        is_known = evidence.quoted and len(lines.texts) == 1
        if not is_known and any('"' in text for text in lines.texts):
            literal = [text.rstrip("\r\n").split(separator) for text in lines.texts]
            for kind in _judge_row(row, literal, width, is_heading=is_heading):
                if not getattr(evidence, kind):
                    setattr(evidence, kind, lines.first)
    return evidence


def _judge_row(
    row: Sequence[str], literal: Sequence[Sequence[str]], width: int, *, is_heading: bool
) -> Iterator[str]:
    """Yields the kinds of evidence in a row.

    Args:
        row: fields, read as quoted.
        literal: fields of each line of the row, read as unquoted.
        width: number of fields in the heading.
    """
    text = "\n".join("\t".join(fields) for fields in literal)
    if len(literal) == 1 and len(literal[0]) == len(row):
        is_open = [field.startswith('"') for field in literal[0]]
        fields = list(zip(literal[0], is_open, strict=True))
        if (is_heading and all(is_open)) or any(o and '""' in f[1:-1] for f, o in fields):
            yield "quoted"
        if any('"' in field and not o for field, o in fields):
            yield "bare"
        return
    is_whole = all(len(fields) == width for fields in literal)  # every line is a row of its own
    doubled = re.search(r'[^\t\n"]""(?!")|""[^\t\n"]', text) is not None
    if len(row) != width:
        if is_whole and not is_heading:
            yield "broken"
    elif doubled or not is_whole or width == 1:
        yield "quoted"
    else:
        yield "joined"
