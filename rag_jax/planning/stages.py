"""A planned run by its stages: hours, memory and programs of each, and what the host does."""

from collections.abc import Iterable
from typing import NamedTuple

from rag_jax.evaluation.tables import format_columns
from rag_jax.planning.batches import Drawn
from rag_jax.planning.planner import Program
from rag_jax.runtime.chips import GIB, Chip

# CPU seconds on a core, from benchmarks/results: of a passage of a hundred words to build BM25,
# ScaNN (768 numbers) and a trie; of one to search it in, a question's; and of an adapter of 8B.
SECONDS = {
    "BM25: build": 3.611e-4,
    "BM25: search": 6.969e-8,
    "ScaNN: build": 3.753e-4,
    "ScaNN: search": 2.034e-9,
    "trie: build": 1.483e-5,
    "adapters: write": 3.535e-2,
    "adapters: read": 2.359e-2,
}


class HostWork(NamedTuple):
    """What a stage does on the host.

    Attributes:
        kind: of `SECONDS`.
        items: number of passages, of pairs of a question and a passage, or of adapters.
    """

    stage: str
    kind: str
    items: int


def format_host(work: Iterable[HostWork]) -> str:
    """A table of what the host does, one core's hours."""
    rows = [["on the host", "s an item", "items", "hours"]]
    for stage, kind, items in work:
        each = SECONDS[kind]
        name = f"{stage}, {kind}"
        rows.append([name, f"{each:.2g}", f"{items:,}", f"{each * items / 3600:,.2g}"])
    return format_columns(rows)


def format_stages(programs: Iterable[Program], drawn: Drawn, chip: Chip) -> str:
    """A table of stages, and of all together.

    Hours are those of every program's runs at least, with nothing between them. A program that
    several stages run is compiled in the first of them.
    """
    stages: dict[str, list[Program]] = {name: [] for name in drawn.stages}
    compiling: dict[str, float] = {}
    for program in programs:
        for stage in program.runs:
            stages.setdefault(stage, []).append(program)
        # One turn of a loop is compiled for the plan alone.
        for stage in list(program.runs)[:1]:
            compiling[stage] = compiling.get(stage, 0) + program.seconds
    rows = [["stage", "programs", "useful", "steps", "hours at least", "GiB a device", "compiling"]]
    total = 0.0
    for stage, members in stages.items():
        if not members:
            continue
        batches = drawn.stages.get(stage)
        hours = _count_hours(stage, members, chip)
        total += hours
        rows.append(
            [
                stage,
                str(len(members)),
                f"{batches.useful:.0%}" if batches else "",
                f"{batches.steps:,}" if batches else "",
                f"{hours:,.2g}",
                f"{max(p.needed for p in members) / GIB:.2f}",
                f"{compiling.get(stage, 0) / 60:.1f} min",
            ]
        )
    every = {id(p): p for members in stages.values() for p in members}.values()
    peak = max((p.needed for p in every), default=0) / GIB
    minutes = f"{sum(compiling.values()) / 60:.1f} min"
    rows.append(["all", str(len(every)), "", "", f"{total:,.2g}", f"{peak:.2f}", minutes])
    return format_columns(rows)


def _count_hours(stage: str, programs: Iterable[Program], chip: Chip) -> float:
    return sum(p.runs[stage] * p.estimate(chip)[0] for p in programs) / 3600
