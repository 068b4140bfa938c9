"""The tables of a report, as rows of text with the heading first."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag_jax.evaluation.pairs import tabulate_pairs

Rows = Sequence[Sequence[str]]

# The columns that "ci95" may be the interval of; the first column that the report has.
_SCORES = ("hits@1", "accuracy", "exact_match")
# Number of digits after the point, by column; 3 for all other columns.
_DIGITS = {
    **dict.fromkeys(("n", "offline_seconds", "bytes_a_document"), 0),
    **dict.fromkeys(("prompt_tokens", "generated_tokens"), 1),
}
METHODS, STAGES, PROGRAMS = "methods", "stages", "programs"
_LONG = 0.5  # seconds of a program, from which on it is in the table of programs
_PAIRED = (
    "Differences on the same questions: Bonett and Price's interval and McNemar's exact test "
    "(paired bootstrap and a permutation test where scores are graded)"
)


def list_tables(report: Mapping[str, Any]) -> dict[str, Rows]:
    """The tables of a report, the content of `report.json`, by title.

    `METHODS` comes first; `STAGES` and, if any program took half a second, `PROGRAMS` last.
    """
    tables: dict[str, Rows] = {METHODS: tabulate_methods(report["methods"], report["columns"])}
    paired = report.get("paired", {})
    if paired.get("rows"):
        tables[_PAIRED] = tabulate_pairs(paired)
    tables |= {title: _format_cells(rows) for title, rows in report["tables"].items()}
    tables[STAGES] = _list_stages(report["stages"])
    programs = _list_programs(report["stages"])
    return {**tables, PROGRAMS: programs} if len(programs) > 1 else tables


def format_tables(tables: Mapping[str, Rows]) -> str:
    """Tables as plain text, each below its title; those of methods and stages explain themselves.

    Args:
        tables: by title, as `list_tables` gives them.
    """
    parts = []
    for title, rows in tables.items():
        known = title in (METHODS, STAGES)
        parts.append(format_columns(rows) if known else f"{title}\n\n{format_columns(rows)}")
    return "\n\n".join(parts)


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


def format_columns(rows: Rows) -> str:
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


def _format_cells(rows: Sequence[Sequence[str | float]]) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else f"{cell:.3f}" for cell in row] for row in rows]


def _list_stages(stages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["stage", "seconds", "compiling", "peak GB", ""]]
    for stage in stages:
        seconds = [f"{stage['seconds']:.1f}", f"{stage['compile_seconds']:.1f}"]
        peak = _format_bytes(stage["peak_bytes"])
        rows.append([stage["name"], *seconds, peak, "kept" if stage["reused"] else ""])
    totals = [sum(s[key] for s in stages) for key in ("seconds", "compile_seconds")]
    peak = _format_bytes(max((stage["peak_bytes"] for stage in stages), default=0))
    return [*rows, ["total", *(f"{total:.1f}" for total in totals), peak, ""]]


def _list_programs(stages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What XLA compiled, or read from its cache, in half a second or more a stage in all."""
    rows = [["program", "stage", "compiled", "seconds", "from the cache", "seconds"]]
    for stage in stages:
        programs = stage.get("programs", {})  # which runs of earlier versions have not
        taken = {n: own["compile_seconds"] + own["read_seconds"] for n, own in programs.items()}
        for name in sorted(taken, key=taken.__getitem__, reverse=True):
            if taken[name] >= _LONG:
                own = programs[name]
                compiled = [str(own["compile_times"]), f"{own['compile_seconds']:.1f}"]
                read = [str(own["read_times"]), f"{own['read_seconds']:.1f}"]
                rows.append([name, stage["name"], *compiled, *read])
    return rows


def _format_bytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count else "-"


def _format_number(name: str, value: float | None) -> str:
    return "-" if value is None else f"{value:.{_DIGITS.get(name, 3)}f}"
