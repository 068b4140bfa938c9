"""Writing to a terminal: characters that it would obey are shown instead of sent.

Passages, titles, file names and settings come from others. A control sequence in one of them could
hide what was printed, rename the window or put text on the command line.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import IO

from rag_jax.runtime.errors import OutputError

# Controls but for tab and line feed, C1 controls, marks that change the direction of writing, line
# and paragraph separators, and halves of surrogate pairs, which no encoding has.
OBEYED = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029"
    r"\u202a-\u202e\u2066-\u2069\ud800-\udfff"
)
_OBEYED = re.compile(f"[{OBEYED}]")
_BREAK = re.compile(r"[\t\n]")


def show_controls(text: str, *, one_line: bool = False) -> str:
    """A text in which control characters are spelled, such as `\\x1b`, and safe for any terminal.

    Tabs and line feeds stay as they are unless the text must be `one_line`.
    """
    text = _OBEYED.sub(_spell, text)
    return _BREAK.sub(_spell, text) if one_line else text


def open_closed() -> None:
    """Opens what is closed of standard input, output and errors: nothing to read, or to nowhere.

    Python has None for a closed one, and the next file that a library opens would take its number:
    what is printed would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (as long as the process)


def discard_output() -> None:
    """Sends what is still to be written to standard output nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_text(text: str, file: IO[str] | None = None, *, end: str = "\n") -> None:
    """Writes lines to standard output, or to another file, with control characters shown.

    Raises:
        OutputError, BrokenPipeError: as `explain_output`.
    """
    with explain_output(file):
        print(show_controls(text), end=end, file=file or sys.stdout, flush=True)


@contextlib.contextmanager
def explain_output(file: IO[str] | None = None) -> Iterator[None]:
    """Turns the OSError of writing to standard output, or to another file, into an OutputError.

    Raises:
        OutputError: standard output is a file on a full disk, for instance.
        BrokenPipeError: whoever reads the output has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if file in (None, sys.stdout):
            discard_output()  # or Python tries again at the end
        raise OutputError(f"the output cannot be written: {error.strerror}") from None


def write_error(error: BaseException | str) -> None:
    """Writes `error: ...` in one line to standard error, with control characters shown."""
    print(f"error: {show_controls(str(error), one_line=True)}", file=sys.stderr, flush=True)


def _spell(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
