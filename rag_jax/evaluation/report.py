"""The report of a run: report.json, report.html and text tables, with one row per method."""

import contextlib
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from rag_jax.evaluation.figures import Figure
from rag_jax.evaluation.page import write_page
from rag_jax.evaluation.run_data import PREDICTIONS, REPORT, collect_run
from rag_jax.evaluation.tables import PROGRAMS, format_tables, list_tables
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, read_json, write_json, write_jsonl
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.memory import read_peak
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.terminal import write_text

PAGE = "report.html"
_NAME = re.compile(r"[\w.-]+")  # of a method


def write_report(
    folder: str | os.PathLike,
    *,
    system: str,
    config: Any,
    model: str,
    dataset: str,
    methods: Mapping[str, Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    columns: Sequence[str],
    scores: Mapping[str, str],
    tables: Mapping[str, Sequence[Sequence[str | float]]] | None = None,
    analysis: Mapping[str, Any] | None = None,
    paired: Mapping[str, Any] | None = None,
    figures: Mapping[str, Figure] | None = None,
) -> dict[str, Any]:
    """Writes `report.json`, `report.html` and `predictions/<method>.jsonl`, and prints the tables.

    The predictions and TREC runs of methods that only the report before had are removed. Returns
    the content of `report.json`.

    Args:
        config: settings of the run, as a dataclass or JSON value.
        dataset: name of the questions.
        methods: metrics by method, all over the same questions. Required: the number of questions
            "n", or "error" for a method that failed, which then has an empty row. Usual:
            "accuracy", its interval "ci95", "retrieval_rate", "seconds_per_question".
        stages: records of the stages, with "name", "seconds", "compile_seconds", "peak_bytes",
            "reused" and, by name, the "programs".
        columns: metrics in the table, in order. A metric that no method has is left out.
        scores: the fields of a prediction that rate its answer, by the score's name. The page calls
            an answer right by the first one.
        tables: further tables by title, as rows of texts and numbers with the heading first.
        analysis: further numbers for `report.json` only.
        paired: the result of `pairs.compare_rows`: every row against the reference row.
        figures: by title.

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
    shown = {"columns": columns, "scores": scores, "figures": figures or {}}
    environment = describe_environment(stages)
    report = {**run, **results, **shown, "stages": stages, "environment": environment}
    shown_tables = list_tables(report)
    with explain_disk_errors(folder):
        (folder / PREDICTIONS).mkdir(exist_ok=True)
        for name in _list_methods(folder / REPORT) - methods.keys():
            (folder / PREDICTIONS / f"{name}.jsonl").unlink(missing_ok=True)
            (folder / f"{name}.trec").unlink(missing_ok=True)
        for name, records in predictions.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be part of a file name")
            write_jsonl(folder / PREDICTIONS / f"{name}.jsonl", records)
        if is_first():
            data = collect_run(report, predictions, folder)
            write_page(folder / PAGE, f"{system}: {model} on {dataset}", [data])
        write_json(folder / REPORT, report)
    write_text(format_tables({t: rows for t, rows in shown_tables.items() if t != PROGRAMS}))
    write_text(f"\nreport: {folder / PAGE}")
    return report


def _list_methods(path: Path) -> set[str]:
    """The methods of a report, by whose names files can be; none where there is no report."""
    if not path.exists():
        return set()
    with contextlib.suppress(RagJaxError), parsing(path):
        return {name for name in read_json(path)["methods"] if _NAME.fullmatch(name)}
    return set()  # a damaged report is about to be written anew


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
