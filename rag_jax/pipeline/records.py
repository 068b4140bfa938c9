"""The record that a stage keeps of itself, by which a later run decides what to reuse.

A stage's fingerprint is a hash of its name, version, settings and the fingerprints of the stages
that it needs. `started.json` is written when a stage begins and `stage.json`, last of all, when the
stage ends. Each holds the fingerprint, the identifier of this making of the stage (`run`) and the
identifiers of the makings that the stage was built on. `stage.json` also holds the checksums of
the stage's files, and a hash of their sizes and times.
"""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.pipeline.stage import Stage
from rag_jax.pipeline.unchanged import list_altered, note_seen
from rag_jax.runtime import memory
from rag_jax.runtime.clock import Prepared, compile_seconds, list_prepared
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import link_or_copy, read_json, sum_files, to_json, write_json
from rag_jax.runtime.outside import is_there, parsing

STARTED, ENDED = "started.json", "stage.json"
# The way in which a work folder is laid out. Raise it when an older folder cannot be continued.
LAYOUT = 2
_LAYOUT_FILE = "layout.json"
_MOST = 1e18  # seconds or bytes that a stage may have taken
# Of a program in a stage: how often and how long XLA compiled it, and it was read from the cache.
_PROGRAM_COSTS = ("compile_times", "compile_seconds", "read_times", "read_seconds")

Record = dict[str, Any]


def check_layout(workdir: Path, flag: str) -> None:
    """Raises a RagJaxError if another version of the library laid the work folder out otherwise."""
    if not (workdir / "stages").is_dir():
        return
    path, found = workdir / _LAYOUT_FILE, 1
    if is_there(path):
        try:
            with parsing(path):
                found = read_json(path)["layout"]
        except RagJaxError:
            found = "unreadable"
    if found != LAYOUT:
        raise RagJaxError(
            f"{workdir}: the folder was made by another version of rag_jax (layout {found}, this "
            f"version's is {LAYOUT}): choose another folder with {flag}, or delete {workdir} "
            "and rerun from the beginning"
        )


def write_layout(workdir: Path) -> None:
    """Marks a work folder as laid out by this version."""
    write_json(workdir / _LAYOUT_FILE, {"layout": LAYOUT})


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal."""
    text = to_json(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def describe(stage: Stage, made: Mapping[str, Record]) -> Record:
    """The record of a stage that was made with its present settings from the present artefacts.

    Raises:
        ValueError: the stage needs a stage that is not among the earlier ones, `made`.
    """
    for need in stage.needs:
        if need not in made:
            raise ValueError(f"stage {stage.name} needs {need}, which is not before it")
    plan = {
        "name": stage.name,
        "version": stage.version,
        "settings": json.loads(to_json(stage.settings)),
        "needs": {need: made[need]["fingerprint"] for need in stage.needs},
    }
    return plan | {
        "fingerprint": fingerprint(plan),
        "built_on": {need: made[need]["run"] for need in stage.needs},
    }


def find_folder(place: Path) -> Path:
    """The folder in which a stage is made whose artefacts belong in `place`.

    It is `place` itself, or a draft beside it where `place` has a stage that ended: what is
    finished stays until what replaces it is finished too.
    """
    draft = _name_draft(place)
    return draft if draft.exists() or (place / ENDED).exists() else place


def _name_draft(place: Path) -> Path:
    return place.with_name(f".{place.name}.draft")


def _name_old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.strip('.')}.old")


def recover(place: Path) -> None:
    """Mends what a process that was killed while it swapped or removed a stage left beside it.

    A stage that was set aside for a draft that has not taken its place is put back, and the draft
    stays. Anything else that was set aside was to be removed, and is.
    """
    old, draft = _name_old(place), _name_draft(place)
    _remove(_name_old(draft))
    if is_there(draft) and not is_there(place) and (old / ENDED).is_file():
        old.rename(place)
    else:
        _remove(old)


def put_in_place(folder: Path, place: Path) -> None:
    """Moves the draft of a stage that ended to the stage's place; removes drafts not needed.

    What was there is removed when the draft is in its place, and is put back if that fails.
    """
    if folder != place:
        old = _set_aside(place)
        try:
            folder.rename(place)
        except BaseException:
            if is_there(old) and not is_there(place):
                old.rename(place)
            raise
        _remove(old)
    elif (draft := find_folder(place)) != place:
        _discard(draft)


def locate(
    place: Path, wanted: Record, made: Mapping[str, Record], *, repairs: bool
) -> tuple[Path, Record | None, str]:
    """The folder in which a stage was made or is to be made; and what `find_record` says of it.

    The reason is why the stage in `place` cannot be kept, if the stage is to be made anew.
    """
    record, reason = find_record(place, wanted, made, repairs=repairs)
    folder = find_folder(place)
    if record or folder == place:
        return place, record, reason
    drafted, _ = find_record(folder, wanted, made, repairs=repairs)
    return folder, drafted, "" if drafted else reason


def begin(folder: Path, wanted: Record) -> None:
    """Empties a stage's folder and records that the stage began."""
    _empty(folder)
    costs = {"seconds": 0.0, "compile_seconds": 0.0, "programs": {}, "peak_bytes": 0}
    write_json(folder / STARTED, {**wanted, "run": uuid.uuid4().hex, **costs})


def take(folder: Path, other: Path) -> None:
    """Makes a stage's folder a copy of one in which the stage ended; the record comes last.

    Files are hard links where the disk has them, which take no room. No stage changes a file of a
    stage that ended: files are replaced whole.
    """
    _empty(folder)
    for path in sorted(other.rglob("*")):
        copy = folder / path.relative_to(other)
        if path.is_dir():
            copy.mkdir()
        elif path != other / ENDED:
            link_or_copy(path, copy)
    link_or_copy(other / ENDED, folder / ENDED)


def resume(folder: Path) -> None:
    """Records that a stage, which may have ended before, is being made again in its folder."""
    (folder / ENDED).unlink(missing_ok=True)


def end(folder: Path) -> None:
    """Records that a stage ended, with the checksums of its files, their sizes and times."""
    sums = sum_files(folder)
    files = {name: sums[name] for name in sums if name not in (STARTED, ENDED)}
    seen = {"files": files, "seen": note_seen(folder, files)}
    write_json(folder / ENDED, read_json(folder / STARTED) | seen)


@contextlib.contextmanager
def measure(folder: Path) -> Iterator[None]:
    """Records what the block took, of a stage that began, however it ends."""
    memory.start_peak()
    start, compiling, prepared = time.monotonic(), compile_seconds(), len(list_prepared())
    try:
        yield
    finally:
        # A disk that filled up must not hide the error that says so, nor may a damaged record.
        with contextlib.suppress(OSError, RagJaxError):
            record = read_json(folder / STARTED)
            record["seconds"] += time.monotonic() - start
            record["compile_seconds"] += compile_seconds() - compiling
            _add_programs(record.setdefault("programs", {}), list_prepared()[prepared:])
            record["peak_bytes"] = max(record.get("peak_bytes", 0), memory.read_peak())
            write_json(folder / STARTED, record)


def _add_programs(programs: Record, prepared: Iterable[Prepared]) -> None:
    """Adds to a record's programs, by name, how often they became ready, how, and in what time."""
    for name, seconds, read in prepared:
        program = programs.setdefault(name, dict.fromkeys(_PROGRAM_COSTS, 0))
        kind = "read" if read else "compile"
        program[f"{kind}_times"] += 1
        program[f"{kind}_seconds"] += seconds


def find_record(
    folder: Path, wanted: Record, made: Mapping[str, Record], *, repairs: bool
) -> tuple[Record | None, str]:
    """The record of the stage in `folder` if the stage can be kept or continued, and a reason.

    Args:
        wanted: from `describe`.
        made: the records of earlier stages, by name.
        repairs: whether the stage repairs its own damaged files.

    Returns:
        The record with `"ended"`, or None if the stage has to be made from an empty folder; and
        why that is so. A stage that repairs its damaged files has not ended.
    """
    record, reason = read_record(folder, wanted, made)
    damage = find_damage(folder, record) if record else ""
    if not damage:
        return record, reason
    return (record | {"ended": False} if repairs else None), damage


def read_record(
    folder: Path, wanted: Record, made: Mapping[str, Record]
) -> tuple[Record | None, str]:
    """As `find_record`, without a look at the stage's files."""
    ended = is_there(folder / ENDED)
    path = folder / (ENDED if ended else STARTED)
    if not is_there(path):
        return None, ""
    try:
        with parsing(path):
            found = read_json(path)
            _check_kinds(found)
            if all(found[key] == wanted[key] for key in wanted):
                return found | {"ended": ended}, ""
            if change := describe_change(found, wanted):
                return None, change
            remade = [n for n in wanted["built_on"] if found["built_on"].get(n) != made[n]["run"]]
            return None, f"{', '.join(remade) or 'what it needs'} was made again"
    except RagJaxError:
        return None, "its record cannot be read"


def _check_kinds(found: Record) -> None:
    """Raises an error unless what a record holds beside its plan is of the kinds it is used as.

    The plan is compared with the one wanted.
    """
    number = int | float
    kinds = {"run": str, "seconds": number, "compile_seconds": number, "built_on": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
    wrong += [name for name in ("files", "programs") if not isinstance(found.get(name, {}), dict)]
    if wrong:
        raise TypeError(f"{', '.join(wrong)}: of another kind")
    costs = [found["seconds"], found["compile_seconds"], found.get("peak_bytes", 0)]
    for program in found.get("programs", {}).values():
        costs += [program[cost] for cost in _PROGRAM_COSTS]
    if not all(0 <= cost < _MOST for cost in costs):
        raise ValueError("seconds or bytes that cannot be")


def describe_change(found: Record, wanted: Record) -> str:
    """Says what differs in a stage's own settings or code; empty if nothing does."""
    if found["settings"] != wanted["settings"]:
        changes = ", ".join(_list_changes(found["settings"], wanted["settings"]))
        return f"settings changed ({changes})"
    return "the code that makes it changed" if found["version"] != wanted["version"] else ""


def find_damage(folder: Path, record: Record) -> str:
    """Says which of a stage's files differ from the stage's record; empty if none does.

    Files of the sizes and times that were noted are not read; see `unchanged`.
    """
    # A stage that has not ended has no checksums.
    if not (files := record.get("files")):
        return ""
    damaged = list_altered(folder, files, record.get("seen"), folder / ENDED)
    if not damaged:
        return ""
    others = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{damaged[0]}{others} removed, cut short or altered"


def _list_changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """`field: old -> new` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            yield from _list_changes(old.get(key), new.get(key), below)
    elif old != new:
        yield f"{path}: {to_json(old)} -> {to_json(new)}"


def _empty(folder: Path) -> None:
    """Leaves an empty folder."""
    _discard(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _discard(folder: Path) -> None:
    """Removes a folder, or whatever is in its place, by a rename: never half of it remains."""
    _remove(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    """Renames a folder, if there is one, and returns the name beside it that it has now."""
    doomed = _name_old(folder)
    _remove(doomed)
    if is_there(folder):
        folder.rename(doomed)
    return doomed


def _remove(path: Path) -> None:
    # A link's target is not the run's, and opening a named pipe would wait for ever.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
