"""What a program costs on a TPU slice, found by compiling it for the slice without having one.

The TPU compiler (`libtpu`) runs on any machine and is given descriptions of arrays in place of
arrays. Memory is what it then reserves. FLOPs and bytes are its own count, of one device, with all
turns of its loops and the operations of attention kernels (`rag_jax.planning.loops`). A loop that
only its data end, as decoding does, counts once: `Planner.compile` is told how often it runs.
"""

import re
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from rag_jax.planning.abstract import describe_inputs, split_rows
from rag_jax.planning.collectives import count_collectives
from rag_jax.planning.hlo import read_module
from rag_jax.planning.loops import scale_counts
from rag_jax.runtime.chips import Chip, find_chip
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.memory import free_programs


@dataclass(frozen=True)
class Cost:
    """What one device does in one run of a program.

    Attributes:
        moved: bytes read from and written to its memory.
        sent: bytes over its links, by kind of collective.
        counts: number of collectives, by kind.
        overlapped: how many of them run while something else is computed, by kind.
    """

    flops: float = 0.0
    moved: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    overlapped: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Cost", times: int) -> "Cost":
        """This cost and `times` the other."""

        def add(own: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
            return {k: own.get(k, 0) + times * others.get(k, 0) for k in sorted({*own, *others})}

        return Cost(
            self.flops + times * other.flops,
            self.moved + times * other.moved,
            add(self.sent, other.sent),
            add(self.counts, other.counts),
            add(self.overlapped, other.overlapped),
        )


@dataclass(frozen=True)
class Program:
    """A compiled program; bytes are those of one device.

    Attributes:
        temporaries: bytes beyond the arguments, with the results that take no argument's memory.
        resident: bytes that stay in memory while the program runs and are no arguments of it.
        seconds: of compiling, here.
        runs: number of runs in each stage of the planned run, by the stage's name; none where the
            program is a part of another one.
    """

    name: str
    arguments: float
    temporaries: float
    resident: float
    cost: Cost
    seconds: float
    runs: Mapping[str, float] = field(default_factory=dict)

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


class Planner:
    """Compiles the programs of a run for its mesh and keeps what they cost.

    Programs without the text `only` in their names are passed over, and their results, where they
    are asked for, taken to be split by rows. `note` is called with each compiled program.
    """

    def __init__(
        self, mesh: Mesh, *, only: str = "", note: Callable[[Program], None] = lambda program: None
    ):
        self.mesh, self.chip = mesh, find_chip(mesh.devices.flat[0])
        self.programs: list[Program] = []
        self._only, self._note = only, note
        self._held: PyTree = []

    def hold(self, *trees: PyTree) -> None:
        """Has only these arrays stay in memory while the next programs run."""
        self._held = trees

    def compile(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        sizes: Mapping[str, int] = types.MappingProxyType({}),
        loop: tuple[str, int] | None = None,
        runs: Mapping[str, float] = types.MappingProxyType({}),
        describe: bool = False,
        **kwargs: Any,
    ) -> PyTree[jax.ShapeDtypeStruct] | None:
        """Compiles a jitted function.

        Args:
            args: descriptions of the arguments, as are `kwargs`; `describe_inputs` makes the rest.
            sizes: of the missing arguments' axes.
            loop: the name of a program that costs what one turn of the function's loop costs, and
                the number of turns that are not counted in the function itself.
            runs: as for `Program`.
            describe: whether to describe the results, where the compiler placed them. A program
                that is passed over must be traced for it.
        """
        kwargs |= describe_inputs(function, self.mesh, sizes, *args, **kwargs)
        if self._only not in name:
            return self._guess(function, *args, **kwargs) if describe else None
        # The last program's compilation leaves a GiB or two of a large model's.
        free_programs()
        passed = jax.tree.leaves((args, kwargs))
        passed = [leaf for leaf in passed if isinstance(leaf, jax.ShapeDtypeStruct)]
        resident = self._count_resident(passed)
        start = time.monotonic()
        with jax.set_mesh(self.mesh):
            lowered = function.lower(*args, **kwargs)
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                arguments = count_bytes_per_device(passed)
                temporaries = _read_shortage(str(error), arguments)
                seconds = time.monotonic() - start
                self._add(Program(name, arguments, temporaries, resident, Cost(), seconds, runs))
                return self._guess(function, *args, **kwargs) if describe else None
        seconds = time.monotonic() - start
        memory = compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        cost = _count(compiled, self.mesh.size)
        if loop is not None:
            step = next((p for p in self.programs if p.name == loop[0]), None)
            cost = cost.add(step.cost, loop[1]) if step else cost
        arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes + results
        self._add(Program(name, arguments, temporaries, resident, cost, seconds, runs))
        if not describe:
            return None
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            compiled.out_info,
            compiled.output_shardings,
        )

    def _count_resident(self, passed: list[jax.ShapeDtypeStruct]) -> int:
        """Bytes of what stays in memory and is not among the arrays that are passed."""
        inside = {id(leaf) for leaf in passed}
        held = [leaf for leaf in jax.tree.leaves(self._held) if id(leaf) not in inside]
        return count_bytes_per_device(held)

    def _add(self, program: Program) -> None:
        self.programs.append(program)
        self._note(program)

    def _guess(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> PyTree:
        """Descriptions of what a function that is not compiled returns."""
        with jax.set_mesh(self.mesh):
            return split_rows(function.eval_shape(*args, **kwargs), self.mesh)


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
    analysis, module = compiled.cost_analysis(), read_module(compiled.as_text())
    counted = analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0)
    return Cost(*scale_counts(module, *counted), *count_collectives(module, devices))
