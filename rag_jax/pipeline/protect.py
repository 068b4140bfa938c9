"""What keeps a finished run from being overwritten by mistake."""

import contextlib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rag_jax.pipeline import records
from rag_jax.pipeline.records import ENDED, Record
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import open_atomic, read_json, write_json
from rag_jax.runtime.outside import parsing

REPORT, PAGE = "report.json", "report.html"
# Of a folder of data, hidden from the readers of folders: what it was made from.
MADE_FROM = ".made_from.json"
SEEDS = "seeds"  # in a work folder, the runs of further seeds and the report over all of them
INDEX = "index"  # what a work folder that holds an index alone has for a system
_BODY = "<body>\n"


def check_finished(
    stages: Sequence[Stage],
    workdir: Path,
    *,
    given: Mapping[str, Record] = MappingProxyType({}),
    overwrite: bool,
    flag: str = "--workdir",
    system: str = "",
) -> bool:
    """Refuses to make stages of a finished run again with other settings, unless `overwrite`.

    A run is finished if it has a report, an index if it has the stage. Stages that evaluate, or
    that no other stage needs, may change, and so may stages that the run does not have, such as
    ablations. An index may become another index.

    Args:
        given: the records of another run's stages that this run takes, by name.
        flag: by which the command line names the work folder.
        system: whose stages they are; a finished run of another one is refused.

    Returns:
        Whether a stage of a finished run will be made again.

    Raises:
        RagJaxError: naming what differs, and a work folder that is free.
    """
    before = _find_system(workdir)
    if before is None or before == system == INDEX:
        return False
    differs = "" not in (before, system) and before != system
    changes = [f"system: {before} -> {system}"] * differs
    compared = _compare_all(stages, workdir, given)
    changes += _list_changes(compared, among=_find_needed(stages))
    pending = differs or any(
        change != "" or _is_outdated(workdir / "stages" / stage.name, given)
        for stage, change in compared
    )
    if changes and not overwrite:
        or_else = ", or overwrite the finished run with --overwrite" * (system != INDEX)
        kind = "index" if before == INDEX else "run"
        raise RagJaxError(
            f"{workdir}: holds a finished {kind} that this command would overwrite "
            f"({_sum_up(changes)}): give the new run a folder of its own, "
            f"{flag}={_find_free(workdir)}{or_else}"
        )
    return pending


def check_results(
    stages: Sequence[Stage],
    folder: Path,
    *,
    given: Mapping[str, Record],
    model: str,
    config: Any,
) -> None:
    """Refuses to overwrite the finished evaluation of another model or of other settings.

    Of an evaluation every stage counts, unlike of a run: `check_finished`. A given stage that was
    made again with the same settings is no change.

    Args:
        model: as a report names it.
        config: settings, of which the system and the seed count.

    Raises:
        RagJaxError: naming what differs, and a folder that is free.
    """
    if not (folder / REPORT).exists():
        return
    with parsing(folder / REPORT):
        report = read_json(folder / REPORT)
        before = {name: report[name] for name in ("system", "model")}
        before["seed"] = report["config"]["seed"]
        names = [stage["name"] for stage in report["stages"]]
    after = {"system": config.system, "model": model, "seed": config.seed}
    other = [name for name in after if before[name] != after[name]]
    changes = [f"{name}: {before[name]} -> {after[name]}" for name in other]
    changes += _list_changes(_compare_all(stages, folder, given))
    left_out = [name for name in names if name not in {stage.name for stage in stages}]
    changes += [f"stage {name}: left out" for name in left_out]
    if changes:
        raise RagJaxError(
            f"{folder}: holds finished results that this command would overwrite "
            f"({_sum_up(changes)}): give the new ones a folder of their own, "
            f"--out={_find_free(folder)}, or overwrite them with --overwrite"
        )


def check_same(stages: Sequence[Stage], workdir: Path, system: str) -> None:
    """Raises a RagJaxError if a work folder has the run of another system or of other settings."""
    before = _read_named(workdir / "config.json") or system
    changes = [f"system: {before} -> {system}"] * (before != system)
    compared = _compare_all(stages, workdir, {})
    changes += _list_changes(compared, among=_find_needed(stages))
    if changes:
        raise RagJaxError(
            f"{workdir}: was made with other settings ({_sum_up(changes)}): give those that the "
            "run was made with"
        )


def check_made(folder: Path) -> None:
    """Raises a RagJaxError if a folder for data is there that no command of ours has made."""
    if folder.exists() and not (folder / MADE_FROM).exists():
        raise RagJaxError(
            f"{folder}: was not made by this command, which would write its questions there; give "
            "the run another folder with --workdir"
        )


def _find_needed(stages: Sequence[Stage]) -> set[str]:
    """The stages that others need, but for those that evaluate."""
    needed = {need for stage in stages for need in stage.needs}
    return needed - {stage.name for stage in stages if stage.evaluates}


def _list_changes(
    compared: Iterable[tuple[Stage, str | None]], *, among: Collection[str] | None = None
) -> list[str]:
    """What differs of stages that a folder has, of all or `among` some."""
    return [
        f"stage {stage.name}: {change}"
        for stage, change in compared
        if change and (among is None or stage.name in among)
    ]


def _sum_up(changes: Sequence[str]) -> str:
    """The first change, and how many others there are."""
    return changes[0] + (f", and {len(changes) - 1} more" if len(changes) > 1 else "")


def list_pending(
    stages: Sequence[Stage], workdir: Path, given: Mapping[str, Record] = MappingProxyType({})
) -> list[Stage]:
    """The stages that will be made, as far as their records tell."""
    pending: dict[str, Stage] = {}
    for stage, change in _compare_all(stages, workdir, given):
        if change != "" or pending.keys() & {*stage.needs}:
            pending[stage.name] = stage
    return [*pending.values()]


def read_system(config: Any) -> str:
    """The system of a config or of its fields; "" without one."""
    found = config.get("system") if isinstance(config, Mapping) else getattr(config, "system", "")
    return found or ""


def _find_system(workdir: Path) -> str | None:
    """The system of what is finished in a folder, "" if it is not told; None if nothing is."""
    if (workdir / REPORT).exists():
        return _read_named(workdir / REPORT)
    is_built = (workdir / "stages" / INDEX / ENDED).exists()
    return INDEX if is_built and _read_named(workdir / "config.json") == INDEX else None


def _read_named(path: Path) -> str:
    """The system that a file names; "" if it names none or is damaged."""
    with contextlib.suppress(RagJaxError), parsing(path):
        return read_system(read_json(path))
    return ""


def _compare_all(
    stages: Sequence[Stage], workdir: Path, given: Mapping[str, Record]
) -> list[tuple[Stage, str | None]]:
    """Every stage with what differs in its record; see `_compare`."""
    made, compared = {**given}, []
    for stage in stages:
        wanted = records.describe(stage, made)
        compared.append((stage, _compare(workdir / "stages" / stage.name, wanted)))
        made[stage.name] = wanted | {"run": ""}
    return compared


def _compare(place: Path, wanted: Record) -> str | None:
    """What differs in the stage's own settings or code, "" if nothing; None without a record."""
    try:
        with parsing(place / ENDED):
            return records.describe_change(read_json(place / ENDED), wanted)
    except RagJaxError:
        return None


def _is_outdated(place: Path, given: Mapping[str, Record]) -> bool:
    """Whether a stage with a record was built on another making of a given stage."""
    built_on = read_json(place / ENDED)["built_on"]
    return any(built_on.get(name, record["run"]) != record["run"] for name, record in given.items())


def _find_free(workdir: Path) -> Path:
    """A name beside the work folder's that is not taken."""
    names = (workdir.with_name(f"{workdir.name}-{number}") for number in itertools.count(2))
    return next(path for path in names if not path.exists())


def mark_report(workdir: Path) -> None:
    """Says in both forms of the report, until it is written again, that the run is being changed.

    So it does in the report over several seeds.

    Raises:
        RagJaxError: the report is damaged.
    """
    for folder in (workdir, workdir / SEEDS):
        if (folder / REPORT).exists():  # an index has none
            _mark(folder)


def _mark(folder: Path) -> None:
    note = "The run is being changed: this report is of the run as it was before."
    with parsing(folder / REPORT):
        report = dict(read_json(folder / REPORT))
    if "under_change" in report:
        return
    page = folder / PAGE
    if page.exists():
        text = page.read_text("utf-8").replace(_BODY, f"{_BODY}<p><strong>{note}</strong></p>\n", 1)
        with open_atomic(page) as file:
            file.write(text)
    write_json(folder / REPORT, {"under_change": note, **report})
