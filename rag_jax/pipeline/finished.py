"""Finished stages of a work folder, and the run of another folder that takes them as given.

A run that evaluates a trained model on other data has stages of its own for what depends on the
data, and reads the trained stages where they are. Its records hold the makings (`run`) of the given
stages like those of its own, so what was built on a stage that has been made again since is made
again too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rag_jax.pipeline import records
from rag_jax.pipeline.records import Record
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class Finished:
    """Finished stages of a work folder, which is read and never written to.

    Attributes:
        records: of each stage, by name.
        folders: of each stage, by name.
    """

    records: Mapping[str, Record] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)


NOTHING = Finished()


_ADVICE = "run launch/train.py with the same --config and --workdir first"


def check_run(workdir: Path) -> None:
    """Raises a RagJaxError if the folder is no work folder of a run."""
    if not (workdir / "stages").is_dir():
        raise RagJaxError(f"{workdir}: there is no finished run; {_ADVICE}")


def find_finished(stages: Sequence[Stage], workdir: Path, names: Collection[str]) -> Finished:
    """Finds the stages that are named; runs and writes nothing.

    Args:
        stages: all stages of the run in `workdir`.

    Raises:
        RagJaxError: naming the first stage that is missing, unfinished or made with other
            settings, among `names` and the stages that those need themselves.
    """
    check_run(workdir)
    records.check_layout(workdir, "--workdir")
    advice = _ADVICE
    made: dict[str, Record] = {}
    wanted = _list_upstream(stages, names)
    for stage in stages:
        if stage.name not in wanted:
            continue
        folder = workdir / "stages" / stage.name
        record, reason = records.read_record(folder, records.describe(stage, made), made)
        if record and not stage.repairs:  # a stage that repairs its files can be read without some
            reason = records.find_damage(folder, record)
        if record is None or not record.pop("ended") or reason:
            if reason.startswith("settings"):
                advice += ", or give the settings that the run was made with"
            reason = reason or "is not finished"
            raise RagJaxError(f"{workdir}: stage {stage.name}: {reason}; {advice}")
        made[stage.name] = record
    return Finished(
        {name: made[name] for name in names},
        {name: workdir / "stages" / name for name in names},
    )


def list_evaluation(
    stages: Sequence[Stage], trained: Collection[str], *, given: bool
) -> list[Stage]:
    """The stages that no other one needs, and those that they need, up to the trained ones.

    Args:
        trained: names of stages that are left out.
        given: whether another run has the trained stages. If not, what was to be made of them is
            left out too, and the stages that no other one needs do without.
    """
    needed = {need for stage in stages for need in stage.needs}
    ends = [stage.name for stage in stages if stage.name not in needed]
    if not given:
        lost = {*trained}
        for stage in stages:
            if stage.name not in ends and lost & {*stage.needs}:
                lost.add(stage.name)
        stages = [
            replace(stage, needs=tuple(need for need in stage.needs if need not in lost))
            for stage in stages
        ]
    wanted = _list_upstream(stages, ends, without=trained)
    return [stage for stage in stages if stage.name in wanted]


def _list_upstream(
    stages: Sequence[Stage], names: Collection[str], *, without: Collection[str] = ()
) -> set[str]:
    """Stages by name with all that they need, directly or not, up to those to do `without`."""
    needs = {stage.name: stage.needs for stage in stages}
    found, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in without:
            found.add(name)
            pending += needs[name]
    return found
