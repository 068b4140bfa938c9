"""How often the parts of a compiled program run, and what its loops cost with all their turns.

The compiler's own counts take the body of a loop once and a Pallas kernel's operations not at all.
Both can be read from the program's text. What an instruction costs is counted here by the rules of
the compiler, of which `tests/planning/test_loops.py` has the differences; only the ratio of all
turns to one is taken, so that a program without loops keeps the compiler's numbers.
"""

import math
import re
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from rag_jax.planning.hlo import (
    COLLECTIVES,
    Array,
    Instruction,
    Lines,
    Module,
    find_phase,
    find_root,
)

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NESTED = "while", "call", "conditional"
_ELEMENTWISE = re.compile(
    "abs|add|and|ceil|clamp|compare|divide|floor|maximum|minimum|multiply|negate|not|or|power"
    "|remainder|round-nearest.*|select|shift-.*|sign|subtract|xor"
)
# They name what is there and move nothing; -done is the end of what its -start counts for.
_FREE = re.compile(
    "after-all|bitcast|constant|get-tuple-element|iota|parameter|partition-id|replica-id|tuple"
    "|while|call|conditional|.*-done"
)
_SLICES = "dynamic-slice", "slice", "gather"
# Products of two matrices for a tile of scores, in each kernel of splash attention.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


class Work(NamedTuple):
    """What a computation does in one run, without its loops, branches and kernels.

    Attributes:
        accessed: bytes read and written, wherever they lie, as the compiler counts them.
        moved: those of them that lie in the device's large memory.
    """

    flops: float
    accessed: float
    moved: float


def count_runs(module: Module) -> list[tuple[str, int]]:
    """The computations that run by themselves, and how often each does in a run of the program.

    A loop that only its data end, as decoding does, counts as one turn.
    """
    runs = []

    def walk(name: str, times: int) -> None:
        runs.append((name, times))
        for i in module.computations[name].values():
            if i.opcode in _NESTED:
                turns = _read_turns(module, i) if i.opcode == "while" else 1
                for called in i.called:
                    walk(called, times * turns)

    walk(module.entry, 1)
    return runs


def scale_counts(module: Module, flops: float, accessed: float) -> tuple[float, float]:
    """Operations of a program with all turns and kernels, and bytes moved to and from memory.

    Args:
        flops, accessed: the compiler's counts.
    """
    once, whole, kernels = np.zeros(3), np.zeros(3), 0.0
    for name, times in count_runs(module):
        work = np.array(count_computation(module, name))
        once, whole = once + work, whole + times * work
        kernels += times * sum(map(count_kernel, module.computations[name].values()))
    flops *= whole[0] / once[0] if once[0] else 1.0
    accessed *= whole[2] / once[1] if once[1] else 1.0
    return float(flops) + kernels, float(accessed)


def count_computation(module: Module, name: str) -> Work:
    """Counts what a computation does by itself."""
    lines = module.computations[name]
    flops = sum(_count_flops(module, lines, i) for i in lines.values())
    accessed, moved = (
        sum(_count_bytes(module, lines, i, moved=moved) for i in lines.values())
        for moved in (False, True)
    )
    return Work(flops, accessed, moved)


def count_kernel(i: Instruction) -> float:
    """Operations of a kernel of splash attention; 0 of everything else.

    The closed form of what the kernel computes, which depends on no segments: of a causal mask
    the n (n + 1) / 2 tiles of n * n that are not empty, of another mask all. A score takes two
    products of a head's features in the forward pass, three in the backward pass of queries, and
    four in that of keys and values.
    """
    kernel = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", i.name)
    if i.opcode != "custom-call" or not kernel:
        return 0.0
    _, _, after = i.text.partition("operand_layout_constraints={")
    operands, _, _ = after.partition("}}")
    shapes = [
        (dtype, [int(d) for d in dimensions.split(",")])
        for dtype, dimensions in re.findall(r"\b(\w+)\[([\d,]+)\]", operands)
    ]
    queries = next(d for dtype, d in shapes if "f" in dtype and len(d) >= 3)
    tiles = shapes[0][1][-1]  # of the table of tiles, the first operand
    # Beside the segments of queries and of keys, a causal mask has the places of the queries.
    causal = sum(dtype == "s32" for dtype, _ in shapes) == 3
    share = (tiles + 1) / (2 * tiles) if causal else 1.0
    return 2 * _PRODUCTS[kernel[1]] * math.prod(queries) * queries[-2] * share


def _read_turns(module: Module, loop: Instruction) -> int:
    if found := _TRIPS.search(loop.text):
        return int(found[1])
    # TPU programs have no such note. A `scan` counts from 0 up to a constant, and so does the loop
    # that the compiler makes of a product and the exchange of its parts, which may count by twos.
    condition, body = (module.computations[loop.find(part)] for part in ("condition", "body"))
    test = find_root(condition)
    if test.opcode != "compare" or "direction=LT" not in test.text:
        return 1
    place, limit = (condition[name] for name in test.operands)
    if place.opcode != "get-tuple-element" or limit.opcode != "constant":
        return 1
    step = body[find_root(body).operands[int(place.find("index"))]]
    steps = [body[name] for name in step.operands if body[name].opcode == "constant"]
    each = steps[0].number if step.opcode == "add" and steps else 1
    return -(-limit.number // each)


def _count_flops(module: Module, lines: Lines, i: Instruction) -> float:
    if _ELEMENTWISE.fullmatch(i.opcode):
        return i.count
    if i.opcode == "dot":
        return 2 * i.count * _count_contracted(lines, i)
    if i.opcode == "convolution":
        return _count_convolution(lines, i)
    if i.opcode == "reduce":
        return lines[i.operands[0]].count * len(i.results) - i.count
    if i.opcode in ("fusion", "async-start"):
        return sum(count_computation(module, name).flops for name in i.called)
    return 0.0


def _count_contracted(lines: Lines, dot: Instruction) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)[1]
    dimensions = lines[dot.operands[0]].results[0].dimensions
    return math.prod(dimensions[int(axis)] for axis in axes.split(",") if axis)


def _count_convolution(lines: Lines, i: Instruction) -> float:
    """A multiply-add for every pair of an output and an input that the window brings together."""
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.text).groups()
    arrays = [lines[name].results[0] for name in i.operands[:2]] + [i.results[0]]
    left, kernel, out = (
        dict(zip(axes, array.dimensions, strict=True))
        for axes, array in zip(names, arrays, strict=True)
    )
    places = [_count_places(i.text, int(a), left[a], out[a]) for a in out if a.isdigit()]
    return 2 * out["b"] * out["f"] * kernel["i"] * math.prod(places)


def _count_places(text: str, axis: int, size: int, outputs: int) -> int:
    """Pairs of an output's place and a window's, of one axis, that meet an element of the input."""

    def read(name: str, default: str) -> str:
        found = re.search(rf"window=\{{[^}}]*\b{name}=([\dx_-]+)", text)
        return found[1].split("x")[axis] if found else default

    window = np.arange(int(read("size", "1"))) * int(read("rhs_dilate", "1"))
    start = np.arange(outputs) * int(read("stride", "1")) - int(read("pad", "0_0").split("_")[0])
    places, apart = start[:, None] + window, int(read("lhs_dilate", "1"))
    return int(((places >= 0) & (places % apart == 0) & (places // apart < size)).sum())


def _count_bytes(module: Module, lines: Lines, i: Instruction, *, moved: bool) -> float:
    """Bytes read and written, or only those that `moved` (`Work`)."""

    def size(array: Array) -> float:
        return 0.0 if moved and array.is_on_chip else array.size

    if _FREE.fullmatch(i.opcode) or "AllocateBuffer" in i.text or "ConcatBitcast" in i.text:
        return 0.0
    if i.opcode in ("copy-start", "slice-start"):  # with both arrays in its result
        both = sorted(filter(lambda array: array.dimensions, i.results), key=attrgetter("size"))
        return sum(both[0].size for array in both[:2] if size(array))
    operands = [sum(map(size, lines[name].results)) for name in i.operands]
    written = sum(map(size, i.results))
    if i.opcode in _SLICES:
        return min(operands[0], i.size) + written + sum(operands[1:])
    if i.opcode == "dynamic-update-slice":
        return min(written, lines[i.operands[1]].size) + sum(operands[1:])
    if i.opcode != "fusion":
        return written + sum(operands)
    # Of an operand that is only sliced, the slices; of one that is written into, what is new.
    in_flight = _list_in_flight(module, i.called[0]) if moved else set()
    written = [min(size(array), new) for array, new in _list_written(module, i, in_flight)]
    lines = module.computations[i.called[0]]
    users = _list_users(lines)
    read = [
        min(operands[p.number], _count_read(module, p, users))
        for p in lines.values()
        if p.opcode == "parameter" and p.name not in in_flight
    ]
    return sum(written) + sum(read)


def _list_in_flight(module: Module, name: str) -> set[str]:
    """Of a fusion with a part of a collective that overlaps, what only passes the collective on.

    Its operand is read where it starts and its result written where it is done; between them every
    fusion has both among its operands and its results, and touches neither.
    """
    lines, phase = module.computations[name], find_phase(module, name)
    if phase is None:
        return set()
    root, users = find_root(lines).name, _list_users(lines)
    collectives = {i.name for i in lines.values() if i.opcode in COLLECTIVES}
    ends = {root, *collectives}
    passed = {
        i.name
        for i in lines.values()
        if i.opcode == "parameter" and ends.issuperset(u.name for u in users.get(i.name, ()))
    }
    return {"start": {root}, "meanwhile": passed | collectives, "done": passed}[phase]


def _list_written(
    module: Module, fusion: Instruction, in_flight: set[str]
) -> Iterator[tuple[Array, float]]:
    """The arrays of a fusion's result with their bytes that are new."""
    lines = module.computations[fusion.called[0]]
    root = find_root(lines)
    results = [lines[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for array, i in zip(fusion.results, results, strict=False):
        if i.name not in in_flight:
            yield array, _count_written(lines, i)


def _list_users(lines: Lines) -> dict[str, list[Instruction]]:
    users: dict[str, list[Instruction]] = {}
    for i in lines.values():
        for name in dict.fromkeys(i.operands):
            users.setdefault(name, []).append(i)
    return users


def _count_written(lines: Lines, i: Instruction) -> float:
    while i.opcode == "bitcast":
        i = lines[i.operands[0]]
    return lines[i.operands[1]].size if i.opcode == "dynamic-update-slice" else i.size


def _count_read(module: Module, i: Instruction, users: dict[str, list[Instruction]]) -> float:
    read, is_passed_on = _follow(module, i, users)
    return math.inf if is_passed_on else read


def _follow(
    module: Module, i: Instruction, users: dict[str, list[Instruction]]
) -> tuple[float, bool]:
    """Bytes that are read of an array within its fusion, and whether the fusion passes it on."""
    if i.is_root:
        return 0.0, True
    into = [_follow_into(module, i, user, users) for user in users.get(i.name, ())]
    return sum(read for read, _ in into), any(is_passed_on for _, is_passed_on in into)


def _follow_into(
    module: Module, i: Instruction, user: Instruction, users: dict[str, list[Instruction]]
) -> tuple[float, bool]:
    """As `_follow`, of what one instruction does with an array."""
    if user.opcode == "bitcast":
        return _follow(module, user, users)
    if user.opcode == "fusion":  # within a fusion
        lines = module.computations[user.called[0]]
        inner = _list_users(lines)
        parameters = [p for p in lines.values() if p.opcode == "parameter"]
        own = [p for p in parameters if user.operands[p.number] == i.name]
        into = [_follow(module, p, inner) for p in own]
        into = [(read, False) for read, _ in into] + [
            _follow(module, user, users) for _, comes_out in into if comes_out
        ]
        return sum(read for read, _ in into), any(is_passed_on for _, is_passed_on in into)
    if user.opcode in _SLICES and user.operands[0] == i.name:
        return user.size, False
    is_written = user.opcode == "dynamic-update-slice" and user.operands[0] == i.name
    return (0.0 if is_written else math.inf), False
