"""What the benchmarks share: the command line, timing in turns, and the report."""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from rag_jax.runtime.paths import expand_path

Sides = dict[str, Callable[[], Any]]
# The functions to time, and what was measured while their results were compared.
Compared = tuple[Sides, dict[str, Any]]


def make_parser(usage: str) -> argparse.ArgumentParser:
    """A command line with `--runs`, `--out` and `--only`."""
    parser = argparse.ArgumentParser(description=usage.splitlines()[0])
    parser.add_argument(
        "--runs", type=_read_runs, default=7, help="timed turns of each side, at least 7"
    )
    parser.add_argument("--out", type=expand_path, help="results file, JSON")
    parser.add_argument(
        "--only", default="", help="text in the names of cases to run; the file keeps its others"
    )
    return parser


def split_arguments() -> tuple[list[str], list[str]]:
    """A script's own arguments, and those after `--`, which are for another command."""
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return sys.argv[1:end], sys.argv[end + 1 :]


def _read_runs(text: str) -> int:
    if (runs := int(text)) < 7:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 7")
    return runs


def time_call(run: Callable[[], Any]) -> float:
    """Wall seconds of a call; the first call of a program compiles it."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(sides: Sides, runs: int) -> dict[str, Any]:
    """Median wall and CPU seconds of every side; the sides alternate in one process."""
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


def run_cases(
    arguments: argparse.Namespace,
    cases: Mapping[str, Callable[[], Compared]],
    packages: Sequence[str],
    *,
    peak: float | None = None,
    describe: Callable[[dict[str, Any], float | None], str] | None = None,
    **facts: Any,
) -> None:
    """Compares and times every case, and writes the report.

    Args:
        arguments: of the command line.
        packages: those that are compared.
        peak: GFLOP/s of the machine.
        describe: the text that is printed of a result; `describe_sides` if None.
        facts: further fields of the report.
    """

    def run_case(name: str) -> dict[str, Any]:
        sides, facts = cases[name]()
        return {"name": name, **facts, **(take_turns(sides, arguments.runs) if sides else {})}

    results = {}
    if arguments.only and arguments.out and arguments.out.exists():
        kept = json.loads(arguments.out.read_text("utf-8"))["results"]
        results = {result["name"]: result for result in kept}
    chosen = [name for name in cases if arguments.only in name]
    for name in tqdm(chosen, desc="benchmark", unit="cases"):
        results[name] = run_case(name)
        tqdm.write((describe or describe_sides)(results[name], peak))
        gc.collect()  # a trainer is part of a reference cycle, and holds models and their moments
    machine = describe_machine(packages, peak)
    write_report(arguments.out, environment=machine, **facts, results=list(results.values()))


def describe_sides(result: Mapping[str, Any], peak: float | None) -> str:
    """A line with the seconds of every side, the ratios to ours, and the speed of ours.

    Args:
        peak: GFLOP/s of the machine, for results with a number of operations.
    """
    wall, cpu = result["wall_seconds"], result["cpu_seconds"]
    parts = [f"{result['name']:28s}"]
    for side, seconds in wall.items():
        ratio = "" if side == "ours" else f" ratio {seconds / wall['ours']:5.2f}"
        parts.append(f"{side} {seconds:7.3f} s (CPU {cpu[side]:7.3f}){ratio}")
    parts.append(f"first call {result['compile_seconds']:5.1f} s")
    if "gigaflop" in result:
        rate = result["gigaflop"] / wall["ours"]
        parts.append(f"{rate:4.0f} GFLOP/s, {rate / peak:4.0%} of peak")
    if "tokens" in result:
        parts.append(f"{result['tokens'] / wall['ours']:6.0f} tokens/s")
    if "same_tokens" in result:
        parts.append(f"{result['same_tokens']:.1%} the same")
    return "  ".join(parts)


def describe_machine(packages: Sequence[str] = (), peak: float | None = None) -> dict[str, Any]:
    """The device, its peak in GFLOP/s if that was measured, and the versions of packages."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **({} if peak is None else {"peak_gflops": peak}),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def write_report(path: Path | None, **report: Any) -> None:
    """Writes the report as JSON, if there is a path."""
    if path:
        path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def require(condition: bool, message: str) -> None:
    """Ends the benchmark if the sides do not agree."""
    if not condition:
        raise SystemExit(f"error: the two sides do not agree: {message}")
