"""JSON read as a stream, value by value, so a document may be larger than the memory."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rag_jax.data.formats import files
from rag_jax.data.formats.files import open_data
from rag_jax.data.formats.lines import Place
from rag_jax.runtime.errors import RagJaxError

_CUT = 16  # characters; the keywords, numbers and escapes of JSON that a chunk may cut are shorter
_SPACE = re.compile(r"[ \t\r\n]*")


class NotJsonError(RagJaxError):
    """Error for a file whose content is not JSON, or not the JSON that the reader needs."""


class JsonStream:
    """Stream of the values of one or several JSON documents in a file.

    `items` and `members` walk through an array and an object; what they lead to must be read, by
    `read_value`, `items` or `members`, before the walk goes on.

    Attributes:
        path: of the file.
        line: number of the line that is being read, counted from 1.
    """

    def __init__(self, file: TextIO, path: Path):
        self._file, self.path, self.line = file, path, 1
        self._text, self._at = "", 0

    def peek(self) -> str:
        """Returns the next character that is no white space, which stays; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self.line += self._text.count("\n", self._at, space.end())
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            self._text, self._at = self._file.read(files.CHUNK), 0
            if not self._text:
                return ""

    def read_value(self) -> Any:
        """Returns the next value.

        Raises:
            NotJsonError: if the next value is not JSON, or longer than the longest.
        """
        return self._read_value(Place(self.path, self.line, self.line))

    def items(self, count: int = 0) -> Iterator[Place]:
        """Walks through an array, yielding the place of each item before the item is read.

        Args:
            count: number of items of earlier arrays; items are counted on.
        """
        self._take("[")
        last, has_comma = count, True
        while (next_one := self.peek()) != "]" or (has_comma and last > count):
            if not next_one:
                message = "the array has no end: download the file again"
                raise NotJsonError(f"{self.path}:{self.line}: {message}")
            if has_comma:
                last, has_comma = last + 1, False
                yield Place(self.path, self.line, last)
            elif next_one == ",":
                self._take(",")
                has_comma = True
            else:
                self._refuse(f"a comma must follow item {last}")
        self._take("]")

    def members(self) -> Iterator[str]:
        """Walks through an object, yielding each key before the value is read."""
        self._take("{")
        while self.peek() != "}":
            key = self.read_value()
            if not isinstance(key, str):
                self._refuse(f"{key!r:.40} must be a key")
            self._take(":")
            self.peek()
            yield key
            if self.peek() != "}":
                self._take(",")
                if self.peek() == "}":
                    self._refuse("a member must follow a comma")
        self._take("}")

    def skip_value(self) -> None:
        """Reads over the next value, of any length."""
        opening = self.peek()
        if opening == "[":
            for _ in self.items():
                self.skip_value()
        elif opening == "{":
            for _ in self.members():
                self.skip_value()
        else:
            self.read_value()

    def read_object(self, place: Place) -> dict[str, Any]:
        """Returns the next value, an object.

        Raises:
            NotJsonError: if the next value is not an object.
        """
        if self.peek() != "{":
            raise NotJsonError(f"{place}: must be an object")
        return self._read_value(place)

    def _read_value(self, place: Place) -> Any:
        is_scalar = self.peek() not in '{["'
        while True:
            chunk = ""
            length = len(self._text) - self._at
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                # An error near the end of the text may only mean that the chunk cuts the value.
                is_cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - _CUT
                )
                if is_cut and length < files.LONGEST:
                    chunk = self._file.read(max(files.CHUNK, length))
                if not chunk:
                    raise NotJsonError(f"{place}: is not JSON ({error})") from None
            else:
                # A number may go on in the next chunk, after up to two characters such as "e+".
                if is_scalar and end > len(self._text) - 3:
                    chunk = self._file.read(files.CHUNK)
                if not chunk:
                    self.line += self._text.count("\n", self._at, end)
                    self._at = end
                    return value
            self._text, self._at = self._text[self._at :] + chunk, 0

    def _take(self, character: str) -> None:
        if self.peek() != character:
            self._refuse(f"{character!r} is missing")
        self._at += 1

    def _refuse(self, reason: str) -> None:
        raise NotJsonError(f"{self.path}:{self.line}: is not JSON ({reason})")


@contextlib.contextmanager
def open_json(path: Path, *, errors: str = "strict") -> Iterator[JsonStream]:
    """Opens a file as a stream of JSON.

    Args:
        errors: what becomes of bytes that are not UTF-8, as in `open`.

    Raises:
        RagJaxError: in the block too, if the file cannot be read.
    """
    with open_data(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors) as file:
        yield JsonStream(file, path)


def find_container(path: Path) -> tuple[str, list[Any] | dict[str, Any]] | None:
    """Returns the key of the first array or object in an object, and how the value begins.

    Of an array, a list of the first item is returned, and of an object a dict of the first member.
    Returns None if the file does not begin with an object that contains an array or an object, or
    is the folder of a saved dataset.

    Raises:
        RagJaxError: if the file cannot be read.
    """
    if path.is_dir():
        return None
    # Bytes that are not UTF-8 are reported, and skipped, when the records are read.
    with contextlib.suppress(NotJsonError), open_json(path, errors="replace") as stream:
        if stream.peek() == "{":
            for key in stream.members():
                if stream.peek() == "[":
                    return key, [stream.read_value() for _ in itertools.islice(stream.items(), 1)]
                if stream.peek() == "{":
                    first = itertools.islice(stream.members(), 1)
                    return key, {name: stream.read_value() for name in first}
                stream.read_value()
    return None


def refuse_constant(constant: str) -> None:
    """Raises a ValueError for NaN or Infinity, which Python's decoder would accept."""
    raise ValueError(f"{constant} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
