"""Planning a whole run: the slice's devices, the table of its programs, what makes them fit."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rag_jax.evaluation.tables import format_columns
from rag_jax.planning.batches import Drawn
from rag_jax.planning.drawing import describe_corpus
from rag_jax.planning.planner import Cost, Planner, Program
from rag_jax.planning.stages import format_stages
from rag_jax.runtime.chips import GIB, find_chip
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.runtime.terminal import write_text


def find_devices(topology: str) -> Sequence[jax.Device]:
    """Descriptions of a slice's devices, such as those of `v5e:8x8`.

    Raises:
        RagJaxError: there is no such slice, its limits are not known, or no compiler is there.
    """
    # No query of a cloud machine's metadata, no complaint without one, and the TPU stays free.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", topology.replace(":", "-"))
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise RagJaxError(
            "planning needs the TPU compiler: pip install -e '.[tpu]' (Linux on x86-64 only)"
        ) from None
    # A host has four chips unless told otherwise.
    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    options |= {"platform": "tpu", "topology_name": topology}
    try:
        devices = topologies.get_topology_desc(**options).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RagJaxError(
            f"--topology={topology}: no such slice; write CHIP:AxB such as v5e:8x8 or, for v4 and "
            f"v5p, CHIP:AxBxC ({reason})"
        ) from error
    find_chip(devices[0])
    return devices


def plan_run(
    system: Any, config: Any, topology: str, draw: Callable[[Any], Drawn], *, only: str = ""
) -> list[Program]:
    """Plans a run and prints the tables of its programs and of its stages.

    Args:
        system: a system's `plan` module, with the class of its settings as `CONFIG`,
            `plan(config, devices, drawn, ...) -> Planner`, and `list_remedies(config, name)`,
            which yields flags and the configs that they make.
        draw: the batches of a run with some settings.
        only: as for `Planner`.

    Raises:
        RagJaxError: no program's name has `only` in it, or a program does not fit; the message
            says what would make it fit.
    """
    devices = find_devices(topology)
    drawn = draw(config)
    planner = system.plan(config, devices, drawn, only=only, note=_say_compiled)
    if not planner.programs:
        raise RagJaxError(f"--only={only}: no program's name has this in it")
    chip, mesh = planner.chip, dict(planner.mesh.shape)
    write_text(
        f"{len(devices)} x {devices[0].device_kind}, mesh {mesh['data']} data by {mesh['model']} "
        f"model, {chip.memory / GIB:.2f} GiB a device; {describe_corpus(drawn.corpus)}\n"
    )
    write_text(f"{format_columns(_list_rows(planner))}\n")
    write_text(format_stages(planner.programs, drawn, chip))
    large = [program for program in planner.programs if program.needed > chip.memory]
    if large:
        worst = max(large, key=lambda program: program.needed)
        raise RagJaxError(
            f"{worst.name} needs {worst.needed / GIB:.2f} GiB of {chip.memory / GIB:.2f} GiB a "
            f"device on {topology}; {_advise(system, config, devices, draw, worst)}"
        )
    return planner.programs


def _say_compiled(program: Program) -> None:
    needed = program.needed / GIB
    log(f"{program.name}: {needed:.2f} GiB a device, compiled in {program.seconds:.0f} s")


def _advise(
    system: Any,
    config: Any,
    devices: Sequence[jax.Device],
    draw: Callable[[Any], Drawn],
    program: Program,
) -> str:
    """What makes a program fit, by compiling it with one changed setting after the other."""
    tried = []
    kind = re.sub(r" \d+ x \d+$", "", program.name)  # with other settings there are other shapes
    for flag, changed in system.list_remedies(config, program.name):
        log(f"trying {flag}")
        try:
            planner = system.plan(changed, devices, draw(changed), only=kind)
        except RagJaxError as error:  # a mesh that does not divide, a batch that is too small
            tried.append(f"{flag} ({error})")
            continue
        needed = max((again.needed for again in planner.programs), default=0.0)
        if needed <= planner.chip.memory:
            return f"with {flag} it needs {needed / GIB:.2f} GiB and fits"
        tried.append(f"{flag} ({needed / GIB:.2f} GiB)")
    return f"no single change is enough, tried {', '.join(tried)}: take a larger slice"


_HEAD = [
    *("program", "arguments GiB", "temporary GiB", "resident GiB", "of memory", "TFLOP"),
    *("GB moved", "GB sent", "collectives", "compiling s", "runs", "at least", "set by"),
]


def _name_collectives(cost: Cost) -> str:
    """Such as "224 all-gather (192 overlap) 64 all-reduce"."""
    names = []
    for kind, count in sorted(cost.counts.items()):
        overlapped = cost.overlapped.get(kind, 0)
        names.append(f"{count} {kind}" + (f" ({overlapped} overlap)" if overlapped else ""))
    return " ".join(names) or "none"


def _list_rows(planner: Planner) -> list[list[str]]:
    rows = [_HEAD]
    for p in planner.programs:
        fits = p.needed <= planner.chip.memory
        seconds, bound = p.estimate(planner.chip)
        rows.append(
            [
                p.name,
                *(f"{size / GIB:.2f}" for size in (p.arguments, p.temporaries, p.resident)),
                f"{p.needed / planner.chip.memory:.0%}",
                f"{p.cost.flops / 1e12:.3f}",
                f"{p.cost.moved / 1e9:.2f}",
                f"{sum(p.cost.sent.values()) / 1e9:.2f}",
                _name_collectives(p.cost),
                f"{p.seconds:.1f}",
                f"{sum(p.runs.values()):,.0f}" if p.runs else "",
                f"{1000 * seconds:.1f} ms" if fits else "-",
                bound if fits else "does not fit",
            ]
        )
    return rows
