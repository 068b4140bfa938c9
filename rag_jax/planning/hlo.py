"""A compiled program's text, read into its computations and their instructions."""

import math
import re
from typing import Literal, NamedTuple

COLLECTIVES = "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"

_BITS = {"pred": 8, "bf16": 16}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*S\([1-9]\d*\)[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.-]+)|_computations=\{([^}]*)\}"
)


class Array(NamedTuple):
    """One array of an instruction's result.

    Attributes:
        size: bytes.
        is_on_chip: whether it lies in a memory of the core's own, which is fast and small.
    """

    dimensions: tuple[int, ...]
    size: float
    is_on_chip: bool = False

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.dimensions)


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
        results: the arrays of the result; of a tuple all of its leaves.
        operands: names of the instructions that it reads.
        called: names of the computations that it runs: of a loop the condition and the body.
        text: what stands after the opcode's opening parenthesis.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def size(self) -> float:
        """Bytes of the result."""
        return sum(array.size for array in self.results)

    @property
    def count(self) -> int:
        """Number of the result's elements."""
        return sum(array.count for array in self.results)

    @property
    def number(self) -> int:
        """The value of a constant, or which of a computation's arguments a parameter is."""
        return int(re.match(r"-?\d+", self.text)[0])

    def find(self, attribute: str) -> str:
        """The value of an attribute, such as `index` or `body`."""
        return re.search(rf"\b{attribute}=%?([\w.-]+)", self.text)[1]


Lines = dict[str, Instruction]
Phase = Literal["start", "meanwhile", "done"]


class Module(NamedTuple):
    """A program: its computations by their names, each with its instructions by theirs."""

    computations: dict[str, Lines]
    entry: str


def read_module(text: str) -> Module:
    """Reads what `as_text` of a compiled program gives."""
    computations: dict[str, Lines] = {}
    entry, lines = "", {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            lines = computations[found[2]] = {}
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line.strip()):
            lines[found[2]] = _read_instruction(found)
    return Module(computations, entry)


def find_root(lines: Lines) -> Instruction:
    """The instruction whose result is the computation's."""
    return next(i for i in lines.values() if i.is_root)


def find_phase(module: Module, name: str) -> Phase | None:
    """Which part of a collective that overlaps a fused computation has; none if it has no such.

    The collective stands in several fusions: in that which starts it, in those that compute
    meanwhile, and in that which waits for it.
    """
    lines = module.computations[name]
    if not any(i.opcode in COLLECTIVES for i in lines.values()):
        return None
    text = "".join(i.text for i in lines.values())
    if "AsyncCollectiveStart" in text:
        return "start"
    if "AsyncCollectiveDone" in text:
        return "done"
    return "meanwhile" if name.startswith("async_collective_fusion") else None


def read_arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type such as `(f32[8]{0}, bf16[8,4]{1,0})`."""
    arrays = []
    for dtype, dimensions, on_chip in _ARRAY.findall(text):
        sizes = tuple(int(d) for d in dimensions.split(",") if d)
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
        arrays.append(Array(sizes, bits / 8 * math.prod(sizes), bool(on_chip)))
    return tuple(arrays)


def _read_instruction(found: re.Match[str]) -> Instruction:
    root, name, result, opcode, text = found.groups()
    operands = tuple(re.findall(r"%([\w.-]+)", _cut_operands(text)))
    called = " ".join(" ".join(names) for names in _CALLED.findall(text))
    called = tuple(re.findall(r"[\w.-]+", called))
    return Instruction(name, opcode, read_arrays(result), operands, called, text, bool(root))


def _cut_operands(text: str) -> str:
    """What stands before the parenthesis that closes the operands."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[: found.start()]
    return text
