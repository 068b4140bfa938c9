"""A comparison from an empty folder to the report: data, the systems' runs, one table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.comparison.config import SYSTEMS, CompareConfig, list_changes, to_plain
from rag_jax.comparison.grade import COLUMNS, grade_rows, list_frontier, summarize, weigh_row
from rag_jax.comparison.questions import (
    count_passages,
    describe_data,
    is_prepared,
    prepare_data,
    read_questions,
)
from rag_jax.comparison.rows import find_row
from rag_jax.comparison.runs import run_system
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record
from rag_jax.evaluation.figures import Costs, Figure
from rag_jax.evaluation.pairs import compare_rows
from rag_jax.evaluation.report import write_report
from rag_jax.pipeline.protect import mark_report
from rag_jax.pipeline.workdir import check_apart, hold_lock, make_workdir
from rag_jax.runtime import signals
from rag_jax.runtime.checkpoint import check_path
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, read_json, remove_left
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log
from rag_jax.runtime.track import check_tracker
from rag_jax.systems import open_room
from rag_jax.systems.embeddings import FOLDER as EMBEDDINGS

DATA, REPORT = "data", "report.json"
SCORES = {"accuracy": "correct"}  # what the rows are compared by
_FRONTIERS = {
    "seconds": ("seconds_median", "seconds a question, median"),
    "bytes": ("bytes_a_document", "bytes a document"),
}
# Runs a system with its settings in a folder, and says by keyword whether it may `overwrite` a
# finished run of others; gives what ended it early, or None.
Run = Callable[..., str | None]


def compare(
    config: CompareConfig, workdir: Path, *, overwrite: bool = False, run: Run = run_system
) -> dict[str, Any]:
    """Runs the systems that have not finished yet, and writes and returns the report.

    The work folder has `data`, a work folder for each system, `embeddings`, which they share, and
    the report of all of them. A system that fails is a row that says why, and the others go on.

    Args:
        overwrite: whether a finished comparison of other data or settings may be overwritten, and
            a system's finished run.

    Raises:
        RagJaxError: before anything is made, if the reference is no row, the data has no question
            to ask, the tracker is not installed, the work folder cannot have checkpoints, or the
            data, a finished comparison or a folder `data` of somebody's own would be overwritten;
            at the end, if a system failed.
    """
    check_tracker(config)
    check_path(workdir)
    check_apart(workdir, config.data.path, "--workdir")
    reference = find_reference(config)
    described = describe_data(config)
    with explain_disk_errors(workdir):
        changes = check_finished(config, workdir, described, overwrite=overwrite)
        signals.begin_work()
        make_workdir(workdir, "--workdir")
        with hold_lock(workdir / ".lock", "--workdir"):
            data = workdir / DATA
            remove_left(data)
            if changes:
                mark_report(workdir)
            prepare_data(config, data, described)
            failed = run_all(config, workdir, run, overwrite=overwrite)
            questions = read_questions(data, config.evaluate_on)
            graded = _grade_all(config, workdir, questions, failed)
            report = _report(config, workdir, graded, failed, reference)
    if failed:
        raise RagJaxError(
            f"{len(failed)} of {len(config.systems)} systems failed ({', '.join(failed)}); "
            f"{workdir / 'report.html'} says why, and the same command tries them again"
        )
    return report


def find_reference(config: CompareConfig) -> str:
    """The row that others are compared with.

    Raises:
        RagJaxError: the systems have no such row.
    """
    rows = [
        f"{system}.{method}"
        for system in config.systems
        for method in open_room(system, "pipeline")
        .describe_report(config.settings(system, Path(DATA)))
        .methods
    ]
    if config.reference is not None and config.reference not in rows:
        raise RagJaxError(
            f"config.reference={config.reference!r}: no such row; there are {', '.join(rows)}"
        )
    return config.reference or rows[0]


def check_finished(
    config: CompareConfig, workdir: Path, described: Mapping[str, Any], *, overwrite: bool
) -> bool:
    """Whether a finished comparison will be made again with other data or settings.

    Systems may be added or left out, and the reference may be another.

    Raises:
        RagJaxError: it will be, without `overwrite`; or its report is damaged.
    """
    if not (workdir / REPORT).exists():
        return False
    with parsing(workdir / REPORT):
        report = read_json(workdir / REPORT)
        if report["system"] != config.system:
            change = f"system: {report['system']} -> {config.system}"
        else:
            # A system that never ran, or failed, has nothing to lose.
            unfinished = (name for name in SYSTEMS if not (workdir / name / REPORT).exists())
            free = tuple(f"config.{name}." for name in unfinished)
            changes = list_changes(report["config"], config)
            change = next((change for change in changes if not change.startswith(free)), "")
    if not change and not is_prepared(workdir / DATA, dict(described)):
        change = "the files of the data, or which questions have to be chosen"
    if change and not overwrite:
        raise RagJaxError(
            f"{workdir}: holds a finished run that this command would overwrite ({change}): give "
            "the new run a folder of its own with --workdir, or overwrite it with --overwrite"
        )
    return change != ""


def run_all(config: CompareConfig, workdir: Path, run: Run, *, overwrite: bool) -> dict[str, str]:
    """Runs every system in a folder of its own; returns what ended those that failed."""
    failed = {}
    for number, system in enumerate(config.systems, start=1):
        log(f"system {number} of {len(config.systems)}: {system}, in {workdir / system}")
        settings = config.settings(system, workdir / DATA)
        share_embeddings(workdir, system)
        if error := run(system, settings, workdir / system, overwrite=overwrite):
            log(f"system {system} failed: {error}")
            failed[system] = error
    return failed


def share_embeddings(workdir: Path, system: str) -> None:
    """Has a system's run keep its corpus's embeddings where those of the others are."""
    (workdir / EMBEDDINGS).mkdir(exist_ok=True)
    (workdir / system).mkdir(exist_ok=True)
    own = workdir / system / EMBEDDINGS
    if not own.exists():
        own.symlink_to(Path("..") / EMBEDDINGS)


def _grade_all(
    config: CompareConfig, workdir: Path, questions: Sequence[Question], failed: dict[str, str]
) -> dict[str, dict[str, list[Record]]]:
    """The graded rows of every system that finished; adds to `failed` those that cannot be read."""
    graded = {}
    for system in config.systems:
        if system not in failed:
            try:
                graded[system] = grade_rows(system, workdir / system, questions)
            except RagJaxError as error:
                failed[system] = str(error)
    return graded


def _report(
    config: CompareConfig,
    workdir: Path,
    graded: Mapping[str, Mapping[str, list[Record]]],
    failed: Mapping[str, str],
    reference: str,
) -> dict[str, Any]:
    """Writes and returns the report."""
    passages = count_passages(workdir / DATA)
    methods: dict[str, dict[str, Any]] = {}
    stages: list[dict[str, Any]] = []
    kinds: list[list[str | float]] = [["row", "knowledge", "model that answers"]]
    for system in config.systems:
        if system in failed:
            methods[system] = {"error": failed[system]}
            continue
        own = read_json(workdir / system / REPORT)["stages"]
        stages += [stage | {"name": f"{system} {stage['name']}"} for stage in own]
        for name, records in graded[system].items():
            method = name.partition(".")[2]
            costs = weigh_row(system, method, workdir / system, own, passages)
            methods[name] = summarize(records) | costs
            row = find_row(system, method)
            kinds.append([name, row.knowledge, row.reader])
    predictions = {name: rows for own in graded.values() for name, rows in own.items()}
    frontiers, figures = _draw_costs(methods)
    tables: dict[str, list[list[str | float]]] = {"what the rows are": kinds}
    if failed:
        tables = {"systems that failed": [["system", "why"], *map(list, failed.items())]} | tables
    has = reference in predictions
    if not has:
        log(f"config.reference={reference}: its system failed, so that no rows are paired")
    return write_report(
        workdir,
        system=config.system,
        config=to_plain(config),
        model=config.model.name,
        dataset=f"{config.data.path or 'gazetteer'}, {config.evaluate_on} questions",
        methods=methods,
        columns=COLUMNS,
        scores=SCORES,
        stages=stages,
        predictions=predictions,
        tables=tables,
        analysis={"failed": dict(failed), "frontier": frontiers, "passages": passages},
        paired=compare_rows(predictions, reference, SCORES) if has else None,
        figures=figures,
    )


def _draw_costs(
    methods: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """For each cost the rows that no other row beats, and the chart of accuracy against it."""
    frontiers: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    for name, (column, label) in _FRONTIERS.items():
        points = {
            row: (numbers[column], numbers["accuracy"])
            for row, numbers in methods.items()
            if numbers.get(column) is not None
        }
        if points:
            frontiers[name] = list_frontier(points)
            groups = {row: row.partition(".")[0] for row in points}
            title = f"accuracy against {label}; no row beats those on the line"
            figures[title] = Costs(label, "accuracy", points, groups, frontiers[name])
    return frontiers, figures
