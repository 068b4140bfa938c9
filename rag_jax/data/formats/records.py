"""Records of files: lines of JSON, JSON arrays, objects on several lines each, and tables.

Only one record is in memory at a time, so a file may be larger than the memory.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag_jax.data.formats import hugging_face
from rag_jax.data.formats.files import peek_text
from rag_jax.data.formats.json_stream import JsonStream, NotJsonError, open_json, refuse_constant
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, read_lines
from rag_jax.data.formats.tables import is_table, read_table

# The first line of an object on several lines, and how the next line goes on.
_ON_SEVERAL_LINES = re.compile(r'\{(\s*|[^\n]*,\s*)\n\s*["}]|\{[^\n]*:\s*\n|\{[^\n]*[\[{]\s*\n')


def read_records(path: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the records of a file of JSON lines, JSON arrays, JSON objects, or a table.

    A folder must be a dataset that Hugging Face's `datasets` saved; its rows are the records.

    Files with a name that ends in `.tsv` or `.csv`, before the suffix of a compression, are tables.
    A record of a table is a row, with the fields of the heading as keys. Invalid JSON inside an
    array, or an object on several lines, is an error regardless of the limit of bad lines, because
    the start of the next record is unknown.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    if path.is_dir():
        yield from hugging_face.read_rows(path, bad)
        return
    if is_table(path):
        yield from read_table(path, bad)
        return
    head = peek_text(path)
    if head.startswith("["):
        yield from read_items(path, "")
    elif _ON_SEVERAL_LINES.match(head):
        yield from _read_objects(path)
    else:
        for place, line in read_lines(path, bad):
            with bad:
                record = parse_json(line, place)
                if not isinstance(record, dict):
                    raise BadLineError(f"{place}: must be an object")
                yield place, record


def read_items(path: Path, key: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the objects of an array in each JSON document of a file.

    Args:
        key: key of the array in each document; "" if a document is an array. Items of later
            documents are counted on.

    Raises:
        RagJaxError: if the file cannot be read, a document has no such array, or is not JSON.
    """
    with open_json(path) as stream:
        item = 0
        while opening := stream.peek():
            if opening != ("{" if key else "["):
                kind = f"an object with the array {key!r}" if key else "an array"
                line = f"{path}:{stream.line}"
                raise NotJsonError(f"{line}: only {kind} may follow, not {opening!r}")
            for place in _find_items(stream, key, item):
                item = place.item
                yield place, stream.read_object(place)


def parse_json(text: str, place: Place) -> Any:
    """Parses JSON, without the extensions NaN and Infinity.

    Raises:
        BadLineError: if the text is not JSON.
    """
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"{place}: is not JSON ({error})") from None


def _find_items(stream: JsonStream, key: str, count: int) -> Iterator[Place]:
    """Walks through the array of the next document."""
    if not key:
        yield from stream.items(count)
        return
    has_key = False
    for name in stream.members():
        if name != key:
            stream.skip_value()
        elif has_key or stream.peek() != "[":
            raise NotJsonError(f"{stream.path}:{stream.line}: {key!r} must be one array")
        else:
            has_key = True
            yield from stream.items(count)
    if not has_key:
        raise NotJsonError(f"{stream.path}:{stream.line}: a document has no array {key!r}")


def _read_objects(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    with open_json(path) as stream:
        item = 0
        while stream.peek():
            item += 1
            place = Place(path, stream.line, item)
            yield place, stream.read_object(place)
