"""Writing to a terminal: characters that it would obey are shown instead of sent.

Passages, titles, file names and settings come from others. A control sequence in one of them could
hide what was printed, rename the window or put text on the command line.
"""

import re
import sys
from typing import IO

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


def write_text(text: str, file: IO[str] | None = None) -> None:
    """Writes lines to standard output, or to another file, with control characters shown."""
    print(show_controls(text), file=file or sys.stdout, flush=True)


def write_error(error: BaseException | str) -> None:
    """Writes `error: ...` in one line to standard error, with control characters shown."""
    print(f"error: {show_controls(str(error), one_line=True)}", file=sys.stderr, flush=True)


def _spell(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
