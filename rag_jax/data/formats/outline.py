"""A document as paragraphs under headings, and how it is made of what a reader finds in a file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a document.

    Attributes:
        place: where it begins: a line, a page of a PDF, or the number of a paragraph.
        headings: those that it stands under, from the largest to the smallest.
    """

    place: int
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Document:
    """A document's title, empty if it has none, and its paragraphs."""

    title: str
    paragraphs: tuple[Paragraph, ...]


class Entry(NamedTuple):
    """A heading or another text of a file, where it begins, and a heading's level.

    A lower level is that of a larger heading; a text that is no heading has none.
    """

    place: int
    text: str
    level: int | None = None


def build_document(entries: Iterable[Entry], title: str = "") -> Document:
    """The document that entries make up, without the blank ones.

    A heading with nothing below it says something by itself, and is a paragraph under the headings
    above it; but not the title, which every passage has.

    Args:
        title: of the document; if empty, the first heading is, if no other is as large.
    """
    squeezed = (entry._replace(text=squeeze(entry.text)) for entry in entries)
    own = [entry for entry in squeezed if entry.text]
    title = squeeze(title) or _find_title(own)
    paragraphs: list[Paragraph] = []
    above: dict[int, str] = {}
    for (place, text, level), after in zip(own, [*own[1:], None], strict=False):
        if level is None:
            paragraphs.append(Paragraph(place, tuple(above.values()), text))
            continue
        above = {n: heading for n, heading in above.items() if n < level}
        is_bare = after is None or (after.level is not None and after.level <= level)
        if is_bare and text != title:
            paragraphs.append(Paragraph(place, tuple(above.values()), text))
        above[level] = text
    return Document(title, tuple(paragraphs))


def _find_title(entries: list[Entry]) -> str:
    """The first heading, if no other is as large."""
    headings = [entry for entry in entries if entry.level is not None]
    if headings and all(entry.level > headings[0].level for entry in headings[1:]):
        return headings[0].text
    return ""


def squeeze(text: str) -> str:
    """A text with single spaces, and without marks of where a word may be divided."""
    return " ".join(re.sub(r"\u00ad\s*", "", text).split())
