"""Text that remembers of each character whether a chat template or a message wrote it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# Who wrote a character. It is unknown after an operation that is not followed.
UNKNOWN, TEMPLATE, MESSAGE = 0, 1, 2


class Traced(str):
    """A text, and for each of its characters who wrote it.

    To a template it is a `str` like any other: equal, as long, and found in other texts in the same
    way. The operations that templates use on texts keep track of the characters. An operation that
    does not gives a plain `str`, whose characters are `UNKNOWN`; see `settle`.
    """

    __slots__ = ("_mask",)

    def __new__(cls, text: str, mask: bytes | None = None) -> "Traced":
        """A text with a byte a character, `UNKNOWN`, `TEMPLATE` or `MESSAGE`.

        If `mask` is None, the text keeps its own mask, or all of it is `UNKNOWN`.
        """
        traced = super().__new__(cls, text)
        traced._mask = read_mask(text) if mask is None else mask
        return traced

    def __str__(self) -> "Traced":
        return self

    def __add__(self, other: str) -> "Traced":
        return concatenate((self, other)) if isinstance(other, str) else super().__add__(other)

    def __radd__(self, other: str) -> "Traced":
        return concatenate((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: int) -> "Traced":
        return Traced(super().__mul__(times), self._mask * times)

    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> "Traced":
        mask = self._mask[key]
        return Traced(super().__getitem__(key), mask if isinstance(mask, bytes) else bytes([mask]))

    def __iter__(self) -> Iterator["Traced"]:
        return (self[i] for i in range(len(self)))

    def join(self, parts: Iterable[str]) -> "Traced":
        joined: list[str] = []
        for part in parts:
            joined += [self, part] if joined else [part]
        return concatenate(joined)

    def replace(self, old: str, new: str, count: int = -1) -> "Traced":
        if old:
            return Traced(new).join(self.split(old, count))
        # An empty text is found before every character and at the end.
        found = len(self) + 1 if count < 0 else min(count, len(self) + 1)
        parts: list[str] = []
        for i in range(len(self) + 1):
            parts += [*[new] * (i < found), self[i : i + 1]]
        return concatenate(parts)

    def strip(self, chars: str | None = None) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> "Traced":
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> "Traced":
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str) -> "Traced":
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> "Traced":
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list["Traced"]:
        return self._cut(super().split(sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list["Traced"]:
        return self._cut(super().rsplit(sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list["Traced"]:
        whole = self._cut(super().splitlines(True), "")
        lines = super().splitlines(keepends)
        return [part[: len(line)] for part, line in zip(whole, lines, strict=True)]

    def partition(self, sep: str) -> tuple["Traced", ...]:
        return tuple(self._cut(super().partition(sep), ""))

    def rpartition(self, sep: str) -> tuple["Traced", ...]:
        return tuple(self._cut(super().rpartition(sep), ""))

    def lower(self) -> str:
        return self._change(super().lower())

    def upper(self) -> str:
        return self._change(super().upper())

    def capitalize(self) -> str:
        return self._change(super().capitalize())

    def title(self) -> str:
        return self._change(super().title())

    def _cut(self, parts: Iterable[str], sep: str | None) -> list["Traced"]:
        """The parts of the text, which `sep` separates; None for any white space."""
        cut, start = [], 0
        for part in parts:
            start = self.find(part, start) if sep is None else start
            cut.append(self[start : start + len(part)])
            start += len(part) + len(sep or "")
        return cut

    def _change(self, changed: str) -> str:
        """A text whose characters were changed one by one, or that got more by it."""
        return Traced(changed, self._mask) if len(changed) == len(self) else settle(changed, self)


def read_mask(text: str) -> bytes:
    """For each character `UNKNOWN`, `TEMPLATE` or `MESSAGE`."""
    return text._mask if isinstance(text, Traced) else bytes(len(text))


def mark(text: str, writer: int) -> Traced:
    """A text that a template (`TEMPLATE`) or a message (`MESSAGE`) wrote."""
    return Traced(text, bytes([writer]) * len(text))


def trust(text: str) -> Traced:
    """A text that a template wrote."""
    return mark(text, TEMPLATE)


def settle(value: Any, *sources: Any) -> Any:
    """What an operation made of `sources` without following the characters.

    A plain or unknown text is their writer's if all their characters have the same one. Other
    values, and texts that have several writers, come back as they are.
    """
    if type(value) not in (str, Traced) or any(read_mask(value)):
        return value
    writers = _find_writers(sources)
    return mark(value, *writers) if len(writers) == 1 else value


def _find_writers(value: Any) -> set[int]:
    """Who wrote the texts in a value; also `UNKNOWN` if it can hold texts that are not seen."""
    if isinstance(value, str):
        return {*read_mask(value)}
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        return set().union(*map(_find_writers, value))
    return set() if value is None or isinstance(value, int | float) else {UNKNOWN}


def concatenate(parts: Iterable[Any]) -> Traced:
    """The texts of `parts` one after the other."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    return Traced("".join(texts), b"".join(map(read_mask, texts)))


def join_items(
    items: Iterable[Any], separator: str = "", getter: Callable[[Any], Any] | None = None
) -> Traced:
    """The texts of `items`, or of what `getter` gets of each, with a separator between them."""
    texts = [str(getter(item) if getter else item) for item in items]
    return Traced(separator).join(texts)
