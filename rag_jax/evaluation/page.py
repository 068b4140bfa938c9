"""The page of a report: one HTML file that needs nothing else and asks for nothing else.

The runs' data is in it as JSON, from which its script makes every element, all texts as text. Its
security policy allows its own style and script, by their hashes, and forbids every request.
"""

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.evaluation.side_by_side import join_runs
from rag_jax.evaluation.tables import Rows
from rag_jax.runtime.files import open_atomic, to_json

MARK = '<meta name="generator" content="rag_jax">'  # by which a page is known as one of these
_FILES = importlib.resources.files("rag_jax.evaluation") / "report_page"
_SCRIPTS = (
    *("values.js", "elements.js", "charts.js", "figures.js", "summary.js"),
    *("questions.js", "list.js", "question.js", "keys.js", "page.js"),
)
# What could end the element that holds the data, what JavaScript's older grammar takes for line
# ends, and what UTF-8 does not have or an editor would not show.
_UNSAFE = re.compile("[<>&\u2028\u2029\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_page(
    path: Path,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Rows] | None = None,
) -> None:
    """Writes the page of runs, of `collect_run` each, side by side.

    Args:
        tables: over all runs, by title.
    """
    with open_atomic(path) as file:
        file.write(format_page(title, runs, tables or {}))


def format_page(title: str, runs: Sequence[Mapping[str, Any]], tables: Mapping[str, Rows]) -> str:
    """The page as text; see `write_page`."""
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS))
    parts = {
        "title": html.escape(title.encode(errors="replace").decode()),
        "mark": MARK,
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "data": escape_json({"title": title, "tables": tables, **join_runs(runs)}),
    }
    return _SLOT.sub(lambda found: parts[found[1]], _read("page.html"))


def escape_json(value: Any) -> str:
    """JSON text that a `script` element can hold, whatever texts are in the value."""
    text = to_json(value, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _read(name: str) -> str:
    return (_FILES / name).read_text("utf-8")


def _hash(text: str) -> str:
    """A text's hash as a security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
