"""The report of a run: report.json, report.html and text tables, with one row per method."""

import html
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rag_jax.evaluation.pairs import tabulate_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, open_atomic, write_json, write_jsonl
from rag_jax.runtime.memory import read_peak
from rag_jax.runtime.terminal import write_text

# The columns that "ci95" may be the interval of; the first column that the report has.
_SCORES = ("hits@1", "accuracy", "exact_match")
# Number of digits after the point, by column; 3 for all other columns.
_DIGITS = {
    **dict.fromkeys(("n", "offline_seconds", "bytes_a_document"), 0),
    **dict.fromkeys(("prompt_tokens", "generated_tokens"), 1),
}
_PAIRED = (
    "Differences on the same questions: paired bootstrap, and McNemar's exact test (a permutation "
    "test where scores are graded)"
)


def write_report(
    folder: str | os.PathLike,
    *,
    system: str,
    config: Any,
    model: str,
    dataset: str,
    methods: Mapping[str, Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Iterable[Mapping[str, Any]]],
    columns: Sequence[str],
    tables: Mapping[str, Sequence[Sequence[str | float]]] | None = None,
    analysis: Mapping[str, Any] | None = None,
    paired: Mapping[str, Any] | None = None,
    figures: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes `report.json`, `report.html` and `predictions/<method>.jsonl`, and prints the tables.

    Returns the content of `report.json`.

    Args:
        config: settings of the run, as a dataclass or JSON value.
        dataset: name of the questions.
        methods: metrics by method, all over the same questions. Required: the number of questions
            "n", or "error" for a method that failed, which then has an empty row. Usual:
            "accuracy", its interval "ci95", "retrieval_rate", "seconds_per_question".
        stages: records of the stages, with "name", "seconds", "compile_seconds", "peak_bytes"
            and "reused".
        columns: metrics in the table, in order. A metric that no method has is left out.
        tables: further tables by title, as rows of texts and numbers with the heading first.
        analysis: further numbers for `report.json` only.
        paired: the result of `pairs.compare_rows`: every row against the reference row.
        figures: SVG by title.

    Raises:
        RagJaxError: a method has no questions, or the folder cannot be written.
    """
    folder = Path(folder)
    for name, numbers in methods.items():
        if "error" not in numbers and not numbers["n"]:
            raise RagJaxError(f"method {name}: no questions were left to evaluate it on")
    run = {"system": system, "config": config, "model": model, "dataset": dataset}
    results = {"methods": methods, "tables": tables or {}, "analysis": analysis or {}}
    results |= {"paired": paired} if paired else {}
    report = {**run, **results, "stages": stages, "environment": describe_environment(stages)}
    with explain_disk_errors(folder):
        (folder / "predictions").mkdir(exist_ok=True)
        for name, records in predictions.items():
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"{name!r} cannot be part of a file name")
            write_jsonl(folder / "predictions" / f"{name}.jsonl", records)
        with open_atomic(folder / "report.html") as file:
            file.write(format_html(report, columns, figures or {}))
        write_json(folder / "report.json", report)
    write_text(format_text(report, columns))
    write_text(f"\nreport: {folder / 'report.html'}")
    return report


def describe_environment(stages: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Versions and hardware of the run, and the peak resident memory of its stages in bytes."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "peak_memory_bytes": max([read_peak(), *(stage["peak_bytes"] for stage in stages)]),
    }


def format_text(report: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The tables of a report, the content of `report.json`, as plain text."""
    parts = [format_columns(tabulate_methods(report["methods"], columns))]
    if rows := _pair_rows(report):
        parts.append(f"{_PAIRED}\n\n{format_columns(rows)}")
    for title, rows in report["tables"].items():
        parts.append(f"{title}\n\n{format_columns(_format_cells(rows))}")
    return "\n\n".join([*parts, format_columns(_stage_rows(report))])


def format_html(
    report: Mapping[str, Any], columns: Sequence[str], figures: Mapping[str, str]
) -> str:
    """A report as a self-contained HTML page; `figures` are SVG by title."""

    tables = {"methods": tabulate_methods(report["methods"], columns)}
    if rows := _pair_rows(report):
        tables[_PAIRED] = rows
    tables |= {title: _format_cells(rows) for title, rows in report["tables"].items()}
    drawn = [f"<h2>{html.escape(title)}</h2>\n{figure}" for title, figure in figures.items()]
    environment = [[name, str(value)] for name, value in report["environment"].items()]
    parts = [
        *drawn,
        "<h2>Where the time went</h2>",
        "<p>Seconds of each stage when it was computed; the dark part is compilation.</p>",
        _draw_bars(report["stages"]),
        _format_html_table(_stage_rows(report)),
        _format_html_table([["environment", ""], *environment]),
    ]
    title = f"{report['system']}: {report['model']} on {report['dataset']}"
    return format_page(title, tables, parts)


def format_page(
    title: str, tables: Mapping[str, Sequence[Sequence[str]]], parts: Sequence[str] = ()
) -> str:
    """A self-contained HTML page: tables by their headings, then further HTML."""
    body = [
        f"<h2>{html.escape(heading)}</h2>\n{_format_html_table(rows)}"
        for heading, rows in tables.items()
    ]
    return _PAGE.format(title=html.escape(title), body="\n".join([*body, *parts]))


def tabulate_methods(
    methods: Mapping[str, Mapping[str, Any]], columns: Sequence[str]
) -> list[list[str]]:
    """The numbers of methods as a table with its heading; columns that no method has are omitted.

    The first score has half of its interval, "ci95", beside it.
    """
    shown = [name for name in columns if any(name in numbers for numbers in methods.values())]
    rows = [["method", *(name.replace("_", " ") for name in shown)]]
    for method, numbers in methods.items():
        cells = [_format_number(name, numbers.get(name)) for name in shown]
        score = next((shown.index(name) for name in _SCORES if name in shown), None)
        if score is not None and "ci95" in numbers:
            low, high = numbers["ci95"]
            cells[score] += f" ± {(high - low) / 2:.3f}"
        rows.append([method, *cells])
    return rows


def _pair_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of the paired comparison with its heading; empty if there is nothing to compare."""
    paired = report.get("paired", {})
    return tabulate_pairs(paired) if paired.get("rows") else []


def _format_cells(rows: Sequence[Sequence[str | float]]) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else f"{cell:.3f}" for cell in row] for row in rows]


def _stage_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["stage", "seconds", "compiling", "peak GB", ""]]
    for stage in report["stages"]:
        seconds = [f"{stage['seconds']:.1f}", f"{stage['compile_seconds']:.1f}"]
        peak = _format_bytes(stage["peak_bytes"])
        rows.append([stage["name"], *seconds, peak, "kept" if stage["reused"] else ""])
    totals = [sum(s[key] for s in report["stages"]) for key in ("seconds", "compile_seconds")]
    peak = _format_bytes(max((stage["peak_bytes"] for stage in report["stages"]), default=0))
    return [*rows, ["total", *(f"{total:.1f}" for total in totals), peak, ""]]


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count else "-"


def _format_number(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{_DIGITS.get(name, 3)}f}"


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Formats a table as text, with a rule below the heading.

    The first column is aligned to the left, the others to the right. The heading comes first, and
    all rows have the same number of cells.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def format_row(row: Sequence[str]) -> str:
        (name, name_width), *others = zip(row, widths, strict=True)
        cells = [name.ljust(name_width), *(cell.rjust(width) for cell, width in others)]
        return "  ".join(cells).rstrip()

    head, *body = [format_row(row) for row in rows]
    return "\n".join([head, "-" * (sum(widths) + 2 * len(widths) - 2), *body])


def _format_html_table(rows: Sequence[Sequence[str]]) -> str:
    def format_row(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    head, *body = rows
    lines = [format_row(head, "th"), *(format_row(row, "td") for row in body)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _draw_bars(stages: Sequence[Mapping[str, Any]]) -> str:
    """An SVG with one bar per stage: its seconds, with a darker part for compilation."""
    longest = max((stage["seconds"] for stage in stages), default=0.0) or 1.0
    width, line = 420, 22
    # 8 pixels per letter of the longest name.
    left = 8 + 8 * max((len(stage["name"]) for stage in stages), default=0)
    parts = []
    for row, stage in enumerate(stages):
        y = row * line
        bar = stage["seconds"] / longest * width
        dark = min(stage["compile_seconds"], stage["seconds"]) / longest * width
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(stage["name"])}'
            f'</text><rect x="{left}" y="{y + 4}" width="{bar:.1f}" height="14" class="run"/>'
            f'<rect x="{left}" y="{y + 4}" width="{dark:.1f}" height="14" class="compile"/>'
            f'<text x="{left + bar + 6:.1f}" y="{y + 15}">{stage["seconds"]:.1f} s</text>'
        )
    size = f'viewBox="0 0 {left + width + 80} {len(stages) * line}"'
    return f'<svg {size} role="img">' + "\n".join(parts) + "</svg>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }}
table {{ border-collapse: collapse; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
td {{ white-space: nowrap; }}
svg {{ max-width: 42rem; font-size: 13px; }}
.guide {{ stroke: #777; stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }}
.grid {{ stroke: #e4e4e4; }}
.run {{ fill: #7aa6d6; }}
.compile {{ fill: #2f5d92; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
