"""How the benchmarks take their times: all sides in one process, in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def time_call(run: Callable[[], Any]) -> float:
    """Wall seconds of a call; the first one of a program compiles it."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(sides: dict[str, Callable[[], Any]], runs: int) -> dict[str, Any]:
    """Median wall and CPU seconds of every side, alternating."""
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(runs):
        for side, run in sides.items():
            start = time.process_time()
            wall[side].append(time_call(run))
            cpu[side].append(time.process_time() - start)
    return {
        "wall_seconds": {side: statistics.median(wall[side]) for side in sides},
        "cpu_seconds": {side: statistics.median(cpu[side]) for side in sides},
        "all_wall_seconds": wall,
    }
