"""Asking a finished run: the items that a system shows for a question, and how they are printed.

A system's `ask.py` opens a work folder and gives a function from a question to the items to show,
in the order in which they become known.
"""

import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

from rag_jax.data.passages import Passage
from rag_jax.runtime.clock import xla_seconds
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import OBEYED, write_text

PASSAGES = "passages read"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_CONTROL = re.compile(f"[\t\n{OBEYED}]")


class Facts(NamedTuple):
    """A table under a title; all columns but the last are aligned."""

    title: str
    rows: Sequence[Sequence[str]]


class Piece(NamedTuple):
    """The next piece of a text. The first piece of a title begins a new text, and may be empty."""

    title: str
    text: str


class Note(NamedTuple):
    """A remark in a line of its own."""

    text: str


Ask = Callable[[str], Iterator[Facts | Piece | Note]]


def answer_question(ask: Ask, question: str) -> None:
    """Asks a question, prints each item as it comes, and prints the seconds that it took.

    Raises:
        RagJaxError: the question is blank, or the system refuses it.
    """
    question = clean(question)
    if not question.strip():
        raise RagJaxError("the question is blank: write one")
    start, compiling = time.perf_counter(), xla_seconds()
    show(ask(question), sys.stdout)
    seconds, compiling = time.perf_counter() - start, xla_seconds() - compiling
    extra = f", {compiling:.2f} of them compiling" if compiling >= 0.01 else ""
    write_text(f"{seconds:.2f} s{extra}")


def show(shown: Iterator[Facts | Piece | Note], out: IO[str]) -> None:
    """Writes each item as soon as it comes; titles are bold if `out` is a terminal."""
    before, after = (_BOLD, _PLAIN) if out.isatty() else ("", "")

    def text_title(item: Facts | Piece | Note) -> str | None:
        return item.title if isinstance(item, Piece) else None

    for title, items in itertools.groupby(shown, text_title):
        if title is None:
            for item in items:
                if isinstance(item, Facts):
                    print(f"{before}{clean(item.title)}{after}", file=out)
                    print("\n".join(_align(item.rows)), file=out, flush=True)
                else:
                    print(f"({clean(item.text)})", file=out, flush=True)
        else:
            out.write(f"{before}{clean(title)}:{after} ")
            empty = True
            for piece in items:
                out.write(clean(piece.text))
                out.flush()
                empty = empty and not piece.text
            print("(nothing)" if empty else "", file=out, flush=True)


def clean(text: str) -> str:
    """A text in one line that is safe for any terminal: control characters become U+FFFD."""
    return _CONTROL.sub(lambda match: " " if match[0].isspace() else "\ufffd", text)


def name_passage(passage: Passage) -> str:
    """A passage in one line: its title, if it has one, and its text."""
    return ": ".join(filter(None, (passage.title, passage.text)))


def check_length(tokens: int, limit: int) -> None:
    """Raises a RagJaxError if a question has more tokens than the model's context leaves for it."""
    if tokens > limit:
        raise RagJaxError(
            f"the question has {tokens} tokens, and there is room for {limit}: shorten it"
        )


def _align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    cleaned = [[clean(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cleaned, strict=True)]
    for row in cleaned:
        *cells, last = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(["", *cells, last]).rstrip()
