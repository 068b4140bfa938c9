"""A run is a list of stages in one work folder, and the same command continues where it stopped.

Each stage has a folder, `DIR/stages/<name>`, for what it makes. Its fingerprint is a hash of its
name, version, settings and the fingerprints of the stages it needs. `started.json` is written when
a stage begins and `stage.json`, last of all, when it ends; each names the fingerprint, and the very
runs of the needed stages that it read. So a stage is

- kept, when it ended with this fingerprint, on those runs;
- continued in its folder, when it began so but did not end;
- redone from an empty folder otherwise: a setting of its own or upstream changed, a stage that
  it needs was made again (its artefacts are then not the ones this stage was made from), or a file
  of its folder is not as it was when the stage ended (`stage.json` has their checksums).

Several processes can divide the work of stages, each making a shard of it, and the first all the
rest; they meet in the work folder alone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.pipeline.stage import POLL, Shard, ShardMade, Stage, StageContext, log
from rag_jax.runtime import signals
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import explain_disk_errors, read_json, sum_files, to_json, write_json
from rag_jax.runtime.hosts import is_first, wait_for_all

__all__ = [
    "Shard",
    "Stage",
    "StageContext",
    "fingerprint",
    "open_stages",
    "run_stages",
]

STARTED, ENDED = "started.json", "stage.json"


def run_stages(
    stages: Sequence[Stage],
    workdir: str | os.PathLike,
    *,
    config: Any = None,
    shard: Shard | None = None,
) -> list[dict[str, Any]]:
    """Runs what is not yet made, in order.

    Args:
        stages: every stage after those that it needs.
        workdir: the work folder; made if it is not there.
        config: written to `config.json` in it, for the reader; no stage depends on that file.
        shard: what this process makes of the stages that are divided. Each of the processes can be
            interrupted and started again by itself, while the others wait.

    Returns:
        For each stage `{"name", "seconds", "compile_seconds", "fingerprint", "reused"}`: seconds
        that making it took, interruptions left out, and those within them that went into tracing
        and compiling.

    Raises:
        RagJaxError: if another process works in the folder or it cannot be written.
        Preempted: every stage is made, and this is not the process that reports on them.
    """
    workdir = Path(workdir)
    with explain_disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        follows = shard is not None and shard.number > 0
        lock = workdir / (f".lock.{shard.number}-of-{shard.count}" if follows else ".lock")
        with _lock(lock) if is_first() else contextlib.nullcontext():
            wait_for_all(f"{workdir} is there")
            made: dict[str, dict[str, Any]] = {}
            if follows:
                for stage in stages:
                    made[stage.name] = _follow_stage(stage, workdir / "stages", made, shard)
                raise Preempted("every stage is made; shard 0 writes the report")
            write_json(workdir / "config.json", config)
            for stage in stages:
                made[stage.name] = _run_stage(stage, workdir / "stages", made, shard)
            keys = ("name", "seconds", "compile_seconds", "fingerprint", "reused")
            return [{key: record[key] for key in keys} for record in made.values()]


def open_stages(
    stages: Sequence[Stage], workdir: str | os.PathLike, needs: Sequence[str]
) -> StageContext:
    """What some stages made, to read alone: nothing is run, and nothing written.

    Args:
        stages: of the run, as for `run_stages`.
        needs: names of the stages whose artefacts are read.

    Returns:
        A context that gives the paths of those artefacts.

    Raises:
        RagJaxError: naming the first stage that is missing, unfinished or not made with these
            settings, among those needed and all that they need themselves.
    """
    folder = Path(workdir) / "stages"
    advice = "run launch/train.py with the same --config and --workdir first"
    if not folder.is_dir():
        raise RagJaxError(f"{workdir}: there is no finished run; {advice}")
    by_name = {stage.name: stage for stage in stages}
    wanted, pending = set(), list(needs)
    while pending:
        name = pending.pop()
        wanted.add(name)
        pending += by_name[name].needs
    made: dict[str, dict[str, Any]] = {}
    for stage in stages:
        if stage.name in wanted:
            found, reason = _read_record(folder / stage.name, _describe(stage, made), made)
            if (
                found and not stage.repairs
            ):  # one that mends its files does without the damaged ones
                reason = _find_damaged(folder / stage.name, found)
            if found is None or not found.pop("ended") or reason:
                if reason.startswith("settings"):
                    advice += ", or give the settings that the run was made with"
                reason = reason or "is not finished"
                raise RagJaxError(f"{workdir}: stage {stage.name}: {reason}; {advice}")
            made[stage.name] = found
    return StageContext(Stage("", lambda context: None, needs=tuple(needs)), folder)


def fingerprint(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = to_json(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(stage: Stage, made: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the record of a stage says if it was made with its settings, on what is there."""
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


def _run_stage(
    stage: Stage, folder: Path, made: Mapping[str, Mapping[str, Any]], shard: Shard | None
) -> dict[str, Any]:
    signals.check()
    wanted, context = _describe(stage, made), StageContext(stage, folder, shard)
    found, reason = _check_record(context.folder, wanted, made, stage)
    wait_for_all(f"stage {stage.name} was looked for")
    if found and found.pop("ended"):
        log(f"stage {stage.name}: kept ({found['seconds']:.1f} s when it was made)")
        return found | {"reused": True}
    _begin(context, wanted, found, reason)
    if is_first() and shard is None:  # or they may be other processes'
        for left in context.folder.glob(".*.tmp"):
            left.unlink()
    wait_for_all(f"stage {stage.name} is to begin")
    with _count_seconds(context.folder):
        stage.run(context)
    if is_first():
        made_files = sum_files(context.folder)
        record = read_json(context.folder / STARTED)
        files = {name: made_files[name] for name in made_files if name not in (STARTED, ENDED)}
        write_json(context.folder / ENDED, record | {"files": files})
    wait_for_all(f"stage {stage.name} has ended")
    return read_json(context.folder / ENDED) | {"reused": False}


def _follow_stage(
    stage: Stage, folder: Path, made: Mapping[str, Mapping[str, Any]], shard: Shard
) -> dict[str, Any]:
    """Makes a shard of a stage that the first process has begun, and waits until it has ended."""
    wanted, context = _describe(stage, made), StageContext(stage, folder, shard)
    is_made, said = not stage.shardable, False
    while True:
        found, _ = _check_record(context.folder, wanted, made, stage)
        if found and found.pop("ended"):
            return found
        if found and not is_made:
            with contextlib.suppress(ShardMade):
                stage.run(context)
                raise ValueError(f"stage {stage.name} did not map {stage.shardable[-1]}")
            is_made = True
            continue
        if not said:
            log(f"stage {stage.name}: waiting for shard 0")
            said = True
        time.sleep(POLL)


def _begin(
    context: StageContext, wanted: Mapping[str, Any], found: Mapping[str, Any] | None, reason: str
) -> None:
    """Says why a stage is made, and leaves its folder with the record that it began."""
    name = context.folder.name
    if found is None and reason:
        log(f"stage {name}: {reason}, redoing")
    elif found is not None:
        log(f"stage {name}: {reason}, mending" if reason else f"stage {name}: continuing")
    if not is_first():
        return
    if found is None:
        _empty(context.folder)
        fresh = {"run": uuid.uuid4().hex, "seconds": 0.0, "compile_seconds": 0.0}
        write_json(context.folder / STARTED, {**wanted, **fresh})
    else:
        (context.folder / ENDED).unlink(missing_ok=True)


@contextlib.contextmanager
def _count_seconds(folder: Path) -> Iterator[None]:
    """Adds the block's seconds to the record of the stage that began, however the block ends."""
    start, compiling = time.monotonic(), compile_seconds()
    try:
        yield
    finally:
        # A disk that filled up must not hide the error that says so.
        with contextlib.suppress(OSError):
            found = read_json(folder / STARTED)
            found["seconds"] += time.monotonic() - start
            found["compile_seconds"] += compile_seconds() - compiling
            write_json(folder / STARTED, found)


def _check_record(
    folder: Path, wanted: Mapping[str, Any], made: Mapping[str, Any], stage: Stage
) -> tuple[dict[str, Any] | None, str]:
    """As `_read_record`; a stage with damaged files is none, or has not ended where it mends them.

    Why that is so comes with it.
    """
    found, reason = _read_record(folder, wanted, made)
    damaged = _find_damaged(folder, found) if found else ""
    if not damaged:
        return found, reason
    return found | {"ended": False} if stage.repairs else None, damaged


def _read_record(
    folder: Path, wanted: Mapping[str, Any], made: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """The record of the stage in `folder` if it is the wanted one, with `ended`; else why not."""
    ended = (folder / ENDED).exists()
    try:
        found = read_json(folder / (ENDED if ended else STARTED))
        matches = {key: found[key] == wanted[key] for key in wanted}
    except FileNotFoundError:
        return None, ""
    except (ValueError, KeyError, TypeError):
        return None, "its record cannot be read"
    if all(matches.values()):
        return found | {"ended": ended}, ""
    if not matches["settings"]:
        changes = ", ".join(_list_changes(found["settings"], wanted["settings"]))
        reason = f"settings changed ({changes})"
    elif not matches["version"]:
        reason = "the code that makes it changed"
    else:
        again = [n for n in wanted["built_on"] if found["built_on"].get(n) != made[n]["run"]]
        reason = f"{', '.join(again) or 'what it needs'} was made again"
    return None, reason


def _find_damaged(folder: Path, record: Mapping[str, Any]) -> str:
    """Says which of a stage's files are not as its record has them; nothing if all are."""
    # One that has not ended has no checksums, as have runs made before there were any.
    if not (files := record.get("files")):
        return ""
    found = sum_files(folder)
    damaged = [name for name in files if found.get(name) != files[name]]
    if not damaged:
        return ""
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{damaged[0]}{more} removed, cut short or altered"


def _list_changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """`field: old -> new` for every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            yield from _list_changes(old.get(key), new.get(key), below)
    elif old != new:
        yield f"{path}: {to_json(old)} -> {to_json(new)}"


def _empty(folder: Path) -> None:
    """Leaves an empty folder. The old one goes out of sight first, so never half of it remains."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
        shutil.rmtree(doomed)
    folder.mkdir(parents=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a file for this process; the system lets go of it when the process ends."""
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RagJaxError(
                f"{path.parent}: in use by another run (process {owner}); wait for it or choose "
                "another folder with --workdir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
