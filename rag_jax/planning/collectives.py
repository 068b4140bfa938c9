"""What the devices of a mesh send each other, read off a compiled program's text."""

import math
import re

_BITS = {"pred": 8, "bf16": 16}
_COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def count_collectives(text: str, devices: int) -> tuple[dict[str, float], dict[str, int]]:
    """Bytes that each device sends, and the number of collectives, by kind.

    The bytes are those of ring algorithms over a group of n devices: (n - 1) / n of the whole
    array for a gather, a scatter and an exchange, twice that for a reduction to all. `text` is the
    HLO of a program compiled for `devices` devices.
    """
    sent: dict[str, float] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        found = _COLLECTIVE.search(line)
        if found is None:
            continue
        kind, start = found.groups()
        result = line[: found.start()].split(" = ", 1)[-1]
        sizes = [_count_shape(*shape) for shape in re.findall(r"\b(\w+)\[([\d,]*)\]", result)]
        # An asynchronous one lists its operands as well as its result.
        size = max(sizes) if start else sum(sizes)
        n = _read_group_size(line, devices)
        share = {
            "all-gather": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
            "reduce-scatter": float(n - 1),  # of the result, which is an n-th of the whole
            "all-to-all": (n - 1) / n,
            "collective-permute": 1.0,
        }[kind]
        sent[kind] = sent.get(kind, 0.0) + size * share
        counts[kind] = counts.get(kind, 0) + 1
    return sent, counts


def _count_shape(dtype: str, dimensions: str) -> float:
    digits = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
    return bits / 8 * math.prod(int(d) for d in dimensions.split(",") if d)


def _read_group_size(line: str, devices: int) -> int:
    """Devices that take part in a collective, from any of the ways in which HLO lists them."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return found[1].count(",") + 1
    return devices
