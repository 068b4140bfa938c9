"""Several seeds of one run: each in a work folder of its own, and a report over all of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rag_jax.evaluation.page import write_page
from rag_jax.evaluation.pairs import compare_rows, tabulate_pairs
from rag_jax.evaluation.run_data import collect_run
from rag_jax.evaluation.run_passages import ROOM
from rag_jax.evaluation.tables import format_tables, tabulate_methods
from rag_jax.pipeline.protect import SEEDS
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, read_jsonl, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.progress import log
from rag_jax.runtime.settings import LARGEST_SEED
from rag_jax.runtime.terminal import write_text

_PAIRED = (
    "Differences on the same questions, each question's score the mean over the seeds: paired "
    "bootstrap over the questions and permutation test (of one seed Bonett and Price's interval "
    "and McNemar's exact test)"
)
Reports = Sequence[Mapping[str, Any]]


def run_seeds(
    run: Callable[..., dict[str, Any]],
    describe: Callable[[ConfigDict], ReportSpec],
    config: ConfigDict,
    workdir: Path,
    count: int,
) -> dict[str, Any]:
    """Runs a config with `count` seeds from its own on, and reports on all of them.

    The first seed's run is the work folder's own; those of further seeds are in
    `seeds/<seed>` within the work folder, and take from the first what does not depend on the seed.
    `seeds/report.json` and `seeds/report.html` have for each method the mean and the deviation over
    the seeds, and the paired comparison; the page has the seeds' runs side by side.

    Args:
        run: `run(config, workdir, reuse=...)` runs one seed and returns the seed's report.
        describe: what the report of a config shows.

    Returns:
        The content of `seeds/report.json`, or an empty dict in all processes but the first.

    Raises:
        RagJaxError: as a run, or the runs answered other questions.
    """
    if (last := config.seed + count - 1) > LARGEST_SEED:
        raise RagJaxError(f"--seeds={count}: the last seed, {last}, is above {LARGEST_SEED}")
    workdir, seeds = Path(workdir), list(range(config.seed, config.seed + count))
    folders = [workdir, *(workdir / SEEDS / str(seed) for seed in seeds[1:])]
    reports = []
    for seed, folder in zip(seeds, folders, strict=True):
        log(f"seed {seed}: {folder}")
        one = config.copy_and_resolve_references()
        one.seed = seed
        reports.append(run(one, folder, reuse=None if folder == workdir else workdir))
    if not is_first():
        return {}
    spec = describe(config)
    predictions = [
        {method: read_jsonl(folder / "predictions" / f"{method}.jsonl") for method in spec.methods}
        for folder in folders
    ]
    report = summarize_seeds(seeds, reports, predictions, spec)
    data = [
        collect_run(own, rows, folder, room=ROOM // count) | {"name": f"seed {seed}"}
        for seed, own, rows, folder in zip(seeds, reports, predictions, folders, strict=True)
    ]
    _write(report, spec, workdir / SEEDS, data)
    return report


def summarize_seeds(
    seeds: Sequence[int],
    reports: Reports,
    predictions: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]],
    spec: ReportSpec,
) -> dict[str, Any]:
    """The numbers over several seeds of one run.

    Args:
        reports: the report of each seed.
        predictions: each seed's graded records by method.

    Returns:
        - `seeds`; and `system`, `config`, `model` and `dataset` of the first report.
        - `methods`: for each method the mean of every number over the seeds; `deviation`: the
          sample standard deviations.
        - `paired`: the comparison of `compare_rows`, each question's score the mean over the
          seeds, so that questions are resampled and not their repetitions. `seeds` of each pair
          has the differences of the single seeds.

    Raises:
        RagJaxError: the seeds' questions differ.
    """
    averaged = {
        method: _average_records([by_method[method] for by_method in predictions], spec.scores)
        for method in spec.methods
    }
    paired = compare_rows(averaged, spec.reference, spec.scores)
    for one in (report["paired"]["rows"] for report in reports):
        for method, by_score in paired["rows"].items():
            for score, pair in by_score.items():
                pair.setdefault("seeds", []).append(one[method][score]["difference"])
    numbers = {
        method: {
            name: values
            for name in of_first
            if _are_numbers(values := [report["methods"][method].get(name) for report in reports])
        }
        for method, of_first in reports[0]["methods"].items()
    }
    about = {name: reports[0][name] for name in ("system", "config", "model", "dataset")}
    return {
        "seeds": list(seeds),
        **about,
        "methods": _map_numbers(numbers, np.mean),
        "deviation": _map_numbers(numbers, lambda values: np.std(values, ddof=1)),
        "paired": paired,
    }


def _average_records(
    runs: Sequence[Sequence[Mapping[str, Any]]], scores: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A record a question, with the mean over the runs of every score that each run has."""
    ids = [[row["id"] for row in rows] for rows in runs]
    if any(other != ids[0] for other in ids):
        raise RagJaxError("the seeds answered other questions; remove the folder `seeds` and rerun")
    averaged = []
    for records in zip(*runs, strict=True):
        means = {
            field: float(np.mean([record[field] for record in records]))
            for field in scores.values()
            if all(field in record for record in records)
        }
        averaged.append({"id": records[0]["id"], **means})
    return averaged


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _map_numbers(
    numbers: Mapping[str, Mapping[str, Sequence[float]]], function: Callable[..., Any]
) -> dict[str, dict[str, float]]:
    return {
        method: {name: float(function(values)) for name, values in by_name.items()}
        for method, by_name in numbers.items()
    }


def _write(
    report: Mapping[str, Any], spec: ReportSpec, folder: Path, runs: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the report over all seeds as JSON and as a page, and prints the tables.

    Args:
        runs: the data of every seed's run, for the page.
    """
    names = f"seeds {report['seeds'][0]} to {report['seeds'][-1]}"
    tables = {
        f"mean over {names}": tabulate_methods(report["methods"], spec.columns),
        "deviation over the seeds": tabulate_methods(
            report["deviation"], [name for name in spec.columns if name != "n"]
        ),
        _PAIRED: tabulate_pairs(report["paired"]),
    }
    title = f"{report['system']}: {report['model']} on {report['dataset']}, {names}"
    with explain_disk_errors(folder):
        folder.mkdir(exist_ok=True)
        write_page(folder / "report.html", title, runs, tables)
        write_json(folder / "report.json", report)
    write_text(f"\n{format_tables(tables)}")
    write_text(f"\nreport: {folder / 'report.html'}")
