"""Runs a list of stages in one work folder; the same command continues where a run stopped.

Each stage has a folder, `DIR/stages/<name>`, for its artefacts and its record (see `records`). A
stage is

- kept, if it ended with its present fingerprint and was built on the present artefacts;
- continued in its folder, if it began so but did not end;
- made again from an empty folder otherwise: a setting of the stage or upstream changed, a stage
  that it needs was made again, or one of its files no longer has its checksum. The stage that
  ended stays in its place until the new one has ended too.

Workers can make the pieces of divisible maps; see `workers`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from rag_jax.evaluation.compare import split_by_dataset
from rag_jax.evaluation.pairs import compare_rows, tabulate_pairs
from rag_jax.evaluation.report import write_report
from rag_jax.evaluation.tables import tabulate_methods
from rag_jax.pipeline import protect, records
from rag_jax.pipeline.begin import begin_run
from rag_jax.pipeline.finished import NOTHING, Finished, find_finished
from rag_jax.pipeline.records import ENDED, STARTED, Record
from rag_jax.pipeline.stage import Divide, Stage, StageContext
from rag_jax.pipeline.workdir import check_apart, hold_lock, make_workdir
from rag_jax.runtime import signals
from rag_jax.runtime.checkpoint import check_path
from rag_jax.runtime.cuts import sum_cuts
from rag_jax.runtime.files import (
    explain_disk_errors,
    explain_removal,
    read_json,
    read_jsonl,
    to_json,
)
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.memory import release_memory
from rag_jax.runtime.progress import log
from rag_jax.runtime.track import find_tracker, open_tracker, tracking
from rag_jax.runtime.trackers import NONE, Tracked


def run_stages(
    stages: Sequence[Stage],
    workdir: str | os.PathLike,
    *,
    config: Any = None,
    divide: Divide | None = None,
    reuse: Path | None = None,
    given: Finished = NOTHING,
    overwrite: bool = False,
    flag: str = "--workdir",
) -> list[dict[str, Any]]:
    """Runs the stages that are not made yet, in order.

    Args:
        stages: every stage after the stages that it needs.
        config: written to `config.json` in the work folder for the reader; no stage depends on it.
            Its field "track", if it has one, names the tracker of the stages' curves.
        divide: has workers make the pieces of divisible maps; without it this process makes them.
        reuse: another work folder. A stage that ended there with the same fingerprint, on the same
            artefacts, is taken from there instead of being made.
        given: stages of another work folder, which are not among `stages` but may be needed.
        overwrite: whether a run that has a report may be overwritten; see `check_finished`.
        flag: by which the command line names the work folder, for messages.

    Returns:
        For each stage `{"name", "seconds", "compile_seconds", "programs", "peak_bytes",
        "fingerprint", "reused"}`. Seconds are those that making the stage took, without
        interruptions; `compile_seconds` is the part of them that was tracing and compiling;
        `peak_bytes` is the largest resident memory while it was made, 0 if unknown. A program, by
        the name of its function, has `{"compile_times", "compile_seconds", "read_times",
        "read_seconds"}`: how often and how long XLA compiled it, and it was read from the cache.

    Raises:
        RagJaxError: the folder is in use, was made by another version, cannot be written, or has a
            finished run that would be overwritten.
    """
    signals.begin_work()
    workdir = Path(workdir)
    check_path(workdir, flag)
    with explain_disk_errors(workdir, flag):
        make_workdir(workdir, flag)
        with (
            hold_lock(workdir / ".lock", flag) if is_first() else contextlib.nullcontext(),
            explain_removal(workdir),
        ):
            records.check_layout(workdir, flag)
            wait_for_all(f"{workdir} is there")
            made, place = {**given.records}, (workdir / "stages", given)
            records.write_layout(workdir)
            for stage in stages if is_first() else ():
                records.recover(workdir / "stages" / stage.name)
            wait_for_all(f"{workdir} is repaired")
            options = {"given": given.records, "overwrite": overwrite, "flag": flag}
            options["system"] = protect.read_system(config)
            changes = protect.check_finished(stages, workdir, **options)
            options = {"config": config, "given": given.records, "flag": flag, "changes": changes}
            begin = {stages[0].name: partial(begin_run, stages, workdir, **options)}
            for stage in stages:
                if reuse is not None and is_first():
                    _take_stage(stage, workdir / "stages", made, reuse / "stages")
                before = begin.get(stage.name, lambda context: None)
                track = partial(_describe_tracked, config, workdir, stage.name)
                made[stage.name] = _run_stage(stage, *place, made, divide, before, track)
            keys = ("name", "seconds", "compile_seconds", "fingerprint", "reused")
            return [
                {key: made[stage.name][key] for key in keys}
                | {"peak_bytes": made[stage.name].get("peak_bytes", 0)}
                | {"programs": made[stage.name].get("programs", {})}
                for stage in stages
            ]


def open_stages(
    stages: Sequence[Stage], workdir: str | os.PathLike, needs: Sequence[str]
) -> StageContext:
    """A context that gives the paths of the artefacts of finished stages; runs and writes nothing.

    Raises:
        RagJaxError: naming the first stage that is missing, unfinished or made with other
            settings, among `needs` and the stages that those need themselves.
    """
    workdir = Path(workdir)
    find_finished(stages, workdir, needs)
    return _read_stages(needs, workdir / "stages", NOTHING)


def _read_stages(names: Iterable[str], folder: Path, given: Finished) -> StageContext:
    """A context that gives the paths of the artefacts of stages by name."""
    reader = Stage("", lambda context: None, needs=tuple(names))
    return StageContext(reader, folder, given=given.folders)


@dataclass(frozen=True)
class ReportSpec:
    """What the report of a run shows.

    Attributes:
        methods: for each method the stage that wrote the method's `<method>.jsonl`, a record a
            question.
        columns: the numbers that the main table shows.
        summarize: a method's numbers from the method's records.
        reference: the method that every other one is compared with, question by question.
        scores: the scores that are compared: the field of a record by the score's name. An answer
            is right by the first one.
        extras: further arguments of `write_report` ("tables", "analysis", "figures"), from a
            context of all stages, every method's records and every method's numbers.
    """

    model: str
    methods: Mapping[str, str]
    columns: Sequence[str]
    summarize: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
    reference: str
    scores: Mapping[str, str]
    extras: Callable[..., Mapping[str, Any]] = lambda stages, predictions, methods: {}


def run_session(
    session: Any,
    stages: Sequence[Stage],
    workdir: Path,
    report: ReportSpec,
    *,
    divide: Divide | None = None,
    reuse: Path | None = None,
    given: Finished = NOTHING,
    overwrite: bool = False,
    flag: str = "--workdir",
) -> dict[str, Any]:
    """Runs the stages of a session that are not made yet; writes and returns the report.

    TREC runs that a stage wrote are copied into the work folder. All processes but the first return
    an empty dict.

    Args:
        reuse: another work folder, as for `run_stages`.
        given: as for `run_stages`, as are `overwrite` and `flag`.

    Raises:
        RagJaxError: a fault of the settings, the data, the models or the disk.
    """
    config = session.config
    check_apart(Path(workdir), config.data.path, flag)
    with jax.set_mesh(session.mesh):
        options = {"divide": divide, "reuse": reuse, "given": given, "flag": flag}
        made = run_stages(stages, workdir, config=config, overwrite=overwrite, **options)
    if not is_first():
        return {}
    with explain_removal(Path(workdir)):
        names = (*given.records, *(stage.name for stage in stages))
        found = _read_stages(names, Path(workdir) / "stages", given)
        written = _report(session, workdir, made, report, found)
        _track_methods(config, Path(workdir), report, written["methods"])
        return written


def _report(
    session: Any,
    workdir: Path,
    made: Sequence[Mapping[str, Any]],
    report: ReportSpec,
    found: StageContext,
) -> dict[str, Any]:
    """Writes and returns the report of a run whose stages are all made; `found` has their files."""
    config, folder = session.config, Path(workdir) / "stages"
    predictions = {
        method: read_jsonl(folder / stage / f"{method}.jsonl")
        for method, stage in report.methods.items()
    }
    for path in sorted(folder.glob("[!.]*/*.trec")):
        shutil.copy(path, workdir)
    methods = {method: report.summarize(rows) for method, rows in predictions.items()}
    extras = dict(report.extras(found, predictions, methods))
    extras["tables"] = {**extras.get("tables", {}), **_list_dataset_tables(report, predictions)}
    return write_report(
        workdir,
        system=config.system,
        config=config,
        model=report.model,
        dataset=f"{config.data.path or 'gazetteer'}, {config.evaluate_on} questions",
        methods=methods,
        columns=report.columns,
        scores=report.scores,
        stages=made,
        predictions=predictions,
        paired=compare_rows(predictions, report.reference, report.scores),
        **extras,
    )


def _track_methods(
    config: Any, workdir: Path, report: ReportSpec, methods: Mapping[str, Mapping[str, Any]]
) -> None:
    """Tracks every method's numbers, once for the stages that they come from."""
    if find_tracker(config) == NONE:
        return
    numbers = {
        f"{method}/{name}": value
        for method, values in methods.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
    stages = sorted({*report.methods.values()})
    makings = [read_json(workdir / "stages" / stage / ENDED)["run"] for stage in stages]
    making = records.fingerprint(makings)
    with tracking(_describe_tracked(config, workdir, "evaluation", making)), open_tracker() as to:
        to.log(numbers, 0)


def _describe_tracked(config: Any, workdir: Path, name: str, making: str) -> Tracked:
    """How the curves of a stage are tracked, or of the evaluation."""
    settings = json.loads(to_json(config))
    return Tracked(find_tracker(config), workdir, name, making, settings)


def _list_dataset_tables(
    report: ReportSpec, predictions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[list[str]]]:
    """For each dataset of a mixture, a table of the methods and one of the paired comparison."""
    tables = {}
    for name, asked in split_by_dataset(predictions).items():
        methods = {method: report.summarize(rows) for method, rows in asked.items()}
        tables[f"{name}: methods"] = tabulate_methods(methods, report.columns)
        paired = compare_rows(asked, report.reference, report.scores)
        tables[f"{name}: differences on the same questions"] = tabulate_pairs(paired)
    return tables


def _take_stage(stage: Stage, folder: Path, made: Mapping[str, Record], other: Path) -> None:
    """Copies a stage that ended in another work folder, unless it is in this one already."""
    wanted = records.describe(stage, made)
    if records.find_record(folder / stage.name, wanted, made, repairs=False)[0]:
        return
    record, _ = records.find_record(other / stage.name, wanted, made, repairs=False)
    if record and record["ended"]:
        log(f"stage {stage.name}: taken from {other.parent}")
        records.take(folder / stage.name, other / stage.name)


def _run_stage(
    stage: Stage,
    folder: Path,
    given: Finished,
    made: Mapping[str, Record],
    divide: Divide | None,
    before: Callable[[StageContext], None],
    track: Callable[[str], Tracked],
) -> Record:
    """Keeps, continues or makes a stage; returns the stage's record.

    Args:
        before: is called before the stage is put in its place.
        track: says how a making of the stage is tracked.
    """
    signals.check()
    place, wanted = folder / stage.name, records.describe(stage, made)
    at, record, reason = records.locate(place, wanted, made, repairs=stage.repairs)
    context = StageContext(stage, folder, divide, at, given.folders)
    wait_for_all(f"stage {stage.name} was looked for")
    if record and record.pop("ended"):
        before(context)
        if is_first():
            records.put_in_place(at, place)
        wait_for_all(f"stage {stage.name} is in its place")
        log(f"stage {stage.name}: kept ({record['seconds']:.1f} s when it was made)")
        return record | {"reused": True}
    if record is None and reason:
        log(f"stage {stage.name}: {reason}, redoing")
    elif record is not None:
        log(f"stage {stage.name}: {f'{reason}, repairing' if reason else 'continuing'}")
    if is_first():
        if record is None:
            records.begin(at, wanted)
        else:
            records.resume(at)
        for left in at.glob(".*.tmp"):
            left.unlink()
    wait_for_all(f"stage {stage.name} is to begin")
    making = record["run"] if record else read_json(at / STARTED)["run"]
    with records.measure(at), tracking(track(making)), sum_cuts():
        stage.run(context)
    release_memory()
    if is_first():
        records.end(at)
    before(context)
    if is_first():
        records.put_in_place(at, place)
    wait_for_all(f"stage {stage.name} has ended")
    return read_json(place / ENDED) | {"reused": False}
