"""Asking a finished run: the items that a system shows for a question, and how they are printed.

A system's `ask.py` opens a work folder and gives a function from a question to the items to show,
in the order in which they become known; the last one is the outcome.
"""

import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from rag_jax.data.passages import Passage
from rag_jax.pipeline.citations import Citation, describe_citations, tabulate_citations
from rag_jax.runtime.clock import xla_seconds
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import OBEYED, explain_output, write_text

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


class Threshold(NamedTuple):
    """The likelihood under which an answer is held not to be in the documents.

    Attributes:
        value: in nats a token.
        under, wrong_under: number of development answers under it, and of the wrong ones of them.
        above, right_above: number of the others, and of the right ones of them.
    """

    value: float
    under: int
    wrong_under: int
    above: int
    right_above: int


class Outcome(NamedTuple):
    """What a question came to.

    Attributes:
        answer: None of a system that writes none.
        citations: the passages that the answer rests on, best first.
        source: the knowledge source that was chosen; None of a system without a choice.
        likelihood: mean log-probability in nats of the answer's tokens, by the reader, after the
            passages; None if nothing was read.
        threshold: of the likelihood; None if the run has none.
    """

    answer: str | None
    citations: Sequence[Citation]
    source: str | None = None
    likelihood: float | None = None
    threshold: Threshold | None = None

    @property
    def in_documents(self) -> bool | None:
        """Whether the answer is held to be in the passages; None without a verdict."""
        if self.likelihood is None or self.threshold is None:
            return None
        return self.likelihood >= self.threshold.value

    @property
    def verdict_precision(self) -> float | None:
        """The share of development answers with the same verdict that it was right for."""
        if self.threshold is None or self.in_documents is None:
            return None
        _, under, wrong_under, above, right_above = self.threshold
        return right_above / above if self.in_documents else wrong_under / under


Item = Facts | Piece | Note | Outcome
Ask = Callable[[str], Iterator[Item]]


def answer_question(ask: Ask, question: str) -> None:
    """Asks a question, prints each item as it comes, and prints the seconds that it took.

    Raises:
        RagJaxError: the question is blank, or the system refuses it.
    """
    question = _check_question(question)
    start, compiling = time.perf_counter(), xla_seconds()
    show(ask(question), sys.stdout)
    seconds, compiling = time.perf_counter() - start, xla_seconds() - compiling
    extra = f", {compiling:.2f} of them compiling" if compiling >= 0.01 else ""
    write_text(f"{seconds:.2f} s{extra}")


def answer_in_json(ask: Ask, question: str) -> None:
    """Asks a question and prints one line, a JSON object; remarks go to standard error.

    Raises:
        RagJaxError: as `answer_question`.
    """
    question = _check_question(question)
    for item in ask(question):
        if isinstance(item, Note):
            write_text(_render_note(item), sys.stderr)
        elif isinstance(item, Outcome):
            write_text(describe_outcome(question, item))


def describe_outcome(question: str, outcome: Outcome, error: str | None = None) -> str:
    """A question's outcome as JSON in one line, in which all but ASCII's letters are escaped."""
    described: dict[str, Any] = {"question": question, **outcome._asdict()}
    described["citations"] = describe_citations(outcome.citations)
    described["threshold"] = outcome.threshold and outcome.threshold.value
    described |= {"in_documents": outcome.in_documents}
    described |= {"verdict_precision": outcome.verdict_precision, "error": error}
    # Of ASCII's characters that a terminal obeys, `json` leaves this one.
    return json.dumps(described, allow_nan=False).replace("\x7f", "\\u007f")


def _check_question(question: str) -> str:
    question = clean(question)
    if not question.strip():
        raise RagJaxError("the question is blank: write one")
    return question


def show(shown: Iterator[Item], out: IO[str]) -> None:
    """Writes each item as soon as it comes; titles are bold if `out` is a terminal."""
    before, after = (_BOLD, _PLAIN) if out.isatty() else ("", "")

    def text_title(item: Facts | Piece | Note) -> str | None:
        return item.title if isinstance(item, Piece) else None

    def write(text: str) -> None:
        with explain_output(out):
            out.write(text)
            out.flush()

    shown = itertools.chain.from_iterable(map(_list_shown, shown))
    for title, items in itertools.groupby(shown, text_title):
        if title is None:
            for item in items:
                if isinstance(item, Facts):
                    rows = "\n".join(_align(item.rows))
                    write(f"{before}{clean(item.title)}{after}\n{rows}\n")
                else:
                    write(f"{_render_note(item)}\n")
        else:
            write(f"{before}{clean(title)}:{after} ")
            empty = True
            for piece in items:
                write(clean(piece.text))
                empty = empty and not piece.text
            write("(nothing)\n" if empty else "\n")


def _list_shown(item: Item) -> Iterator[Facts | Piece | Note]:
    """What is shown of an item: of an outcome the citations and the verdict, not the answer."""
    if not isinstance(item, Outcome):
        yield item
        return
    if item.citations:
        yield Facts("citations", tabulate_citations(item.citations))
    else:
        yield Note("no passage was read: the answer is the model's own")
    if item.threshold is not None and item.in_documents is not None:
        yield Note(_describe_verdict(item.likelihood, item.threshold, item.in_documents))


def _describe_verdict(likelihood: float, threshold: Threshold, held: bool) -> str:
    value, under, wrong_under, above, right_above = threshold
    verdict = "in the documents" if held else "perhaps not in the documents"
    side = "not under" if held else "under"
    right = right_above if held else under - wrong_under
    wrong = above - right_above if held else wrong_under
    return (
        f"{verdict}: the answer's likelihood is {likelihood:.3f}, {side} {value:.3f}, as it was "
        f"for {right} right and {wrong} wrong development answers"
    )


def _render_note(note: Note) -> str:
    return f"({clean(note.text)})"


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
