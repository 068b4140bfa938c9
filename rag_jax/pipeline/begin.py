"""The moment after a run's first stage, when what the other stages need is known and checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.pipeline import protect
from rag_jax.pipeline.records import Record
from rag_jax.pipeline.room import check_room
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.files import write_json
from rag_jax.runtime.hosts import is_first


def begin_run(
    stages: Sequence[Stage],
    workdir: Path,
    context: StageContext,
    *,
    config: Any,
    given: Mapping[str, Record],
    flag: str,
    changes: bool,
) -> None:
    """Checks what the stages after the first need, and then touches the first files of the run.

    Args:
        context: of the first stage, whose artefacts are there.
        changes: whether a finished run is changed.
    """
    if pending := protect.list_pending(stages, workdir, given):
        stages[0].check(context)
        check_room(pending, workdir, flag=flag)
    if changes and is_first():
        protect.mark_report(workdir)
    write_json(workdir / "config.json", config)
