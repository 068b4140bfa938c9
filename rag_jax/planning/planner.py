"""What a program costs on a TPU slice, found by compiling it for the slice without having one.

The TPU compiler (`libtpu`) runs on any machine and is given descriptions of arrays in place of
arrays. Memory is what it then reserves. FLOPs and bytes are its own count, of one device, in which
the body of a loop counts once: `Planner.compile` is told how often it runs.
"""

import contextlib
import ctypes
import gc
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rag_jax.evaluation.report import format_columns
from rag_jax.planning.collectives import count_collectives
from rag_jax.runtime.chips import Chip, find_chip
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_bytes_per_device

_GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one device does in one run of a program.

    Attributes:
        flops: operations.
        moved: bytes read from and written to its memory.
        sent: bytes over its links, by kind of collective.
        counts: number of collectives, by kind.
    """

    flops: float = 0.0
    moved: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Cost", times: int) -> "Cost":
        """This cost and `times` the other."""
        kinds = sorted({*self.sent, *other.sent})
        return Cost(
            self.flops + times * other.flops,
            self.moved + times * other.moved,
            {k: self.sent.get(k, 0.0) + times * other.sent.get(k, 0.0) for k in kinds},
            {k: self.counts.get(k, 0) + times * other.counts.get(k, 0) for k in kinds},
        )


@dataclass(frozen=True)
class Program:
    """A compiled program; bytes are those of one device.

    Attributes:
        arguments: arrays passed in.
        temporaries: what the program needs besides, its results not among the arguments' memory
            included.
        resident: arrays that stay in memory while it runs and are no arguments of it.
        seconds: that compiling took, here.
    """

    name: str
    arguments: float
    temporaries: float
    resident: float
    cost: Cost
    seconds: float

    @property
    def needed(self) -> float:
        """Bytes of a device's memory while the program runs."""
        return self.arguments + self.temporaries + self.resident

    def estimate(self, chip: Chip) -> tuple[float, str]:
        """The roofline: seconds that no run can stay below, and what sets them.

        Computing, memory and links are taken to work at once, each at its full rate.
        """
        times = {
            "compute": self.cost.flops / chip.flops,
            "memory": self.cost.moved / chip.bandwidth,
            "links": sum(self.cost.sent.values()) / chip.links,
        }
        bound = max(times, key=times.__getitem__)
        return times[bound], bound


def find_devices(topology: str) -> Sequence[jax.Device]:
    """Descriptions of a slice's devices, such as those of `v5e:8x8`.

    Raises:
        RagJaxError: there is no such slice, its limits are not known, or no compiler is there.
    """
    # Neither asks a cloud machine what it is nor complains that there is none, nor takes the TPU.
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
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RagJaxError(
            f"--topology={topology}: no such slice; write CHIP:AxB such as v5e:8x8 or, for v4 and "
            f"v5p, CHIP:AxBxC ({reason})"
        ) from error
    find_chip(devices[0])
    return devices


class Planner:
    """Compiles the programs of a run for its mesh and keeps what they cost.

    Args:
        only: compile programs with this text in their names; the others are passed over, and
            their results taken to be split by rows.
        note: told of each program once it is compiled.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        only: str = "",
        note: Callable[[Program], None] = lambda program: None,
    ):
        self.mesh = mesh
        self.chip = find_chip(mesh.devices.flat[0])
        self.programs: list[Program] = []
        self._only = only
        self._note = note
        self._held: PyTree = []

    def rows(self, shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array that is split by its rows, as `sharding.shard_batch` splits it."""
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    def whole(self, shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array that lies whole on every device."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    def hold(self, *trees: PyTree) -> None:
        """Has only these arrays stay in memory while the next programs run."""
        self._held = trees

    def compile(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        loop: tuple[str, int] | None = None,
        **kwargs: Any,
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Compiles a jitted function for descriptions of its arguments.

        Args:
            loop: the name of a program that costs what one turn of the function's loop costs, and
                how many turns are not counted in the function itself.

        Returns:
            Descriptions of its results, where the compiler placed them.
        """
        if self._only not in name:
            return self._guess(function, *args, **kwargs)
        _release_memory()
        passed = jax.tree.leaves((args, kwargs))
        passed = [leaf for leaf in passed if isinstance(leaf, jax.ShapeDtypeStruct)]
        inside = {id(leaf) for leaf in passed}
        held = [leaf for leaf in jax.tree.leaves(self._held) if id(leaf) not in inside]
        resident = count_bytes_per_device(held)
        start = time.monotonic()
        with jax.set_mesh(self.mesh):
            lowered = function.lower(*args, **kwargs)
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                arguments = count_bytes_per_device(passed)
                temporaries = _read_shortage(str(error), arguments)
                seconds = time.monotonic() - start
                self._add(Program(name, arguments, temporaries, resident, Cost(), seconds))
                return self._guess(function, *args, **kwargs)
        seconds = time.monotonic() - start
        memory = compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        cost = _count(compiled, self.mesh.size)
        if loop is not None:
            step = next((p for p in self.programs if p.name == loop[0]), None)
            cost = cost.add(step.cost, loop[1]) if step else cost
        self._add(
            Program(
                name,
                memory.argument_size_in_bytes,
                memory.temp_size_in_bytes + results,
                resident,
                cost,
                seconds,
            )
        )
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            compiled.out_info,
            compiled.output_shardings,
        )

    def _add(self, program: Program) -> None:
        self.programs.append(program)
        self._note(program)

    def _guess(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> PyTree:
        """Descriptions of what a function that is not compiled returns: rows split, if they can."""
        parts = self.mesh.shape["data"]

        def describe(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            split = leaf.ndim and leaf.shape[0] % parts == 0
            return (self.rows if split else self.whole)(leaf.shape, leaf.dtype)

        with jax.set_mesh(self.mesh):
            return jax.tree.map(describe, function.eval_shape(*args, **kwargs))


def _release_memory() -> None:
    """Gives back what the last program's compilation freed, which the C library would keep.

    That is a GiB or two of the host's memory for each program of a large model.
    """
    gc.collect()
    jax.clear_caches()
    with contextlib.suppress(OSError, AttributeError):  # another C library than Linux's
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _read_shortage(message: str, arguments: float) -> float:
    """Bytes of temporaries in a program that does not fit, from the compiler's message."""
    size = r"([\d.]+)([KMGT])"
    for regex, known in (
        (rf"Used {size} of [\d.]+[KMGT] hbm", arguments),
        (rf"required for HLO temporaries \({size}\)", 0.0),
    ):
        if found := re.search(regex, message):
            return float(found[1]) * 1024 ** (" KMGT".index(found[2])) - known
    raise RagJaxError(f"the TPU compiler failed: {message.strip().splitlines()[0][:300]}")


def _count(compiled: Any, devices: int) -> Cost:
    analysis = compiled.cost_analysis()
    sent, counts = count_collectives(compiled.as_text(), devices)
    return Cost(analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0), sent, counts)


def plan_run(system: Any, config: Any, topology: str, *, only: str = "") -> list[Program]:
    """Plans a run and prints its table.

    Args:
        system: a system's `plan` module, with the class of its settings as `CONFIG`,
            `plan(config, devices, ...) -> Planner`, and `list_remedies(config, name)`, which
            yields flags and the configs that they make.
        topology: the slice.
        only: as for `Planner`.

    Raises:
        RagJaxError: no program's name has `only` in it, or a program does not fit; the message
            says what would make it fit.
    """
    devices = find_devices(topology)
    planner = system.plan(config, devices, only=only, note=_say_compiled)
    if not planner.programs:
        raise RagJaxError(f"--only={only}: no program's name has this in it")
    chip, mesh = planner.chip, dict(planner.mesh.shape)
    print(
        f"{len(devices)} x {devices[0].device_kind}, mesh {mesh['data']} data by {mesh['model']} "
        f"model, {chip.memory / _GIB:.2f} GiB a device\n"
    )
    print(format_columns(_list_rows(planner)))
    large = [program for program in planner.programs if program.needed > chip.memory]
    if large:
        worst = max(large, key=lambda program: program.needed)
        raise RagJaxError(
            f"{worst.name} needs {worst.needed / _GIB:.2f} GiB of {chip.memory / _GIB:.2f} GiB a "
            f"device on {topology}; {_advise(system, config, devices, worst)}"
        )
    return planner.programs


def _say_compiled(program: Program) -> None:
    needed = program.needed / _GIB
    log(f"{program.name}: {needed:.2f} GiB a device, compiled in {program.seconds:.0f} s")


def _advise(system: Any, config: Any, devices: Sequence[jax.Device], program: Program) -> str:
    """What makes a program fit, by compiling it with one changed setting after the other."""
    tried = []
    for flag, changed in system.list_remedies(config, program.name):
        log(f"trying {flag}")
        try:
            planner = system.plan(changed, devices, only=program.name)
        except RagJaxError as error:  # a mesh that does not divide, a batch that is too small
            tried.append(f"{flag} ({error})")
            continue
        (again,) = planner.programs
        if again.needed <= planner.chip.memory:
            return f"with {flag} it needs {again.needed / _GIB:.2f} GiB and fits"
        tried.append(f"{flag} ({again.needed / _GIB:.2f} GiB)")
    return f"no single change is enough, tried {', '.join(tried)}: take a larger slice"


_HEAD = [
    "program",
    "arguments GiB",
    "temporary GiB",
    "resident GiB",
    "of memory",
    "TFLOP",
    "GB moved",
    "GB sent",
    "collectives",
    "compiling s",
    "at least",
    "set by",
]


def _list_rows(planner: Planner) -> list[list[str]]:
    rows = [_HEAD]
    for p in planner.programs:
        fits = p.needed <= planner.chip.memory
        seconds, bound = p.estimate(planner.chip)
        rows.append(
            [
                p.name,
                f"{p.arguments / _GIB:.2f}",
                f"{p.temporaries / _GIB:.2f}",
                f"{p.resident / _GIB:.2f}",
                f"{p.needed / planner.chip.memory:.0%}",
                f"{p.cost.flops / 1e12:.3f}",
                f"{p.cost.moved / 1e9:.2f}",
                f"{sum(p.cost.sent.values()) / 1e9:.2f}",
                " ".join(f"{n} {kind}" for kind, n in sorted(p.cost.counts.items())) or "none",
                f"{p.seconds:.1f}",
                f"{1000 * seconds:.1f} ms" if fits else "-",
                bound if fits else "does not fit",
            ]
        )
    return rows
