"""What the devices of a mesh send each other, read off a compiled program's text."""

import math
import re
from collections.abc import Iterator

from rag_jax.planning.hlo import COLLECTIVES, Instruction, Module, find_phase
from rag_jax.planning.loops import count_runs


def count_collectives(
    module: Module, devices: int
) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Bytes that each device sends, the number of collectives, and of those that overlap; by kind.

    The bytes are those of ring algorithms over a group of n devices: (n - 1) / n of the whole
    array for a gather, a scatter and an exchange, twice that for a reduction to all. A collective
    in a loop counts with the loop's turns. One that overlaps starts, and ends at another place:
    what stands between them is computed meanwhile.

    Args:
        module: a program compiled for `devices` devices.
    """
    sent: dict[str, float] = {}
    counts: dict[str, int] = {}
    overlapped: dict[str, int] = {}
    for name, times in count_runs(module):
        for kind, i, overlaps in _list_collectives(module, name):
            size = _count_sent(kind, i, devices)
            sent[kind] = sent.get(kind, 0.0) + times * size
            counts[kind] = counts.get(kind, 0) + times
            if overlaps:
                overlapped[kind] = overlapped.get(kind, 0) + times
    return sent, counts, overlapped


def _list_collectives(module: Module, name: str) -> Iterator[tuple[str, Instruction, bool]]:
    """The collectives of one run of a computation: kind, instruction, and whether it overlaps."""
    for i in module.computations[name].values():
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            yield kind, i, i.opcode != kind
        elif i.opcode == "fusion":
            yield from _list_fused(module, i.called[0])


def _list_fused(module: Module, name: str) -> Iterator[tuple[str, Instruction, bool]]:
    """The collective in a fusion, if it begins there."""
    phase = find_phase(module, name)
    if phase in ("meanwhile", "done"):
        return
    for i in module.computations[name].values():
        if i.opcode not in COLLECTIVES:
            continue
        if name.startswith("all-reduce-scatter"):  # a reduction of which a device keeps its part
            yield "reduce-scatter", i, False
        else:
            yield i.opcode, i, phase == "start"


def _count_sent(kind: str, i: Instruction, devices: int) -> float:
    sizes = [array.size for array in i.results]
    # An asynchronous one lists its operands as well as its result.
    size = max(sizes) if i.opcode.endswith("-start") else sum(sizes)
    n = _read_group_size(i.text, devices)
    share = {
        "all-gather": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": float(n - 1),  # of the result, which is an n-th of the whole
        "all-to-all": (n - 1) / n,
        "collective-permute": 1.0,
    }[kind]
    if kind != i.opcode.removesuffix("-start"):  # the reduction that a scatter is written as
        share = (n - 1) / n
    return size * share


def _read_group_size(text: str, devices: int) -> int:
    """Devices that take part in a collective, from any of the ways in which HLO lists them."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return found[1].count(",") + 1
    return devices
