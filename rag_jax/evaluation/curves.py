"""The training curves of a run, from the logs of its stages."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl

LOG = "log.jsonl"
_POINTS = 400  # of a curve, more than a chart has pixels to show
# Stages of a run, and those of the systems of a comparison.
_LOGS = (f"stages/[!.]*/{LOG}", f"[!.]*/stages/[!.]*/{LOG}")


def name_stage(place: Path, folder: Path) -> str:
    """The name that a report of a work folder has for the stage in a place.

    A stage of a comparison has its system before its name.
    """
    return " ".join(part for part in place.relative_to(folder).parts if part != "stages")


def read_curves(folder: Path, stages: Collection[str]) -> dict[str, dict[str, Any]]:
    """The curves of the training stages of a work folder.

    Args:
        stages: of the report. Others are of earlier settings.

    Returns:
        For each stage `every`, the number of steps that a point is the mean of, and `metrics`: by
        name the points (step, value), steps without the metric left out.

    Raises:
        RagJaxError: a log has a line that is none, which is named.
    """
    curves = {}
    for pattern in _LOGS:
        for path in sorted(folder.glob(pattern)):
            if (name := name_stage(path.parent, folder)) in stages:
                curves[name] = thin_out(_read_log(path))
    return {name: curve for name, curve in curves.items() if curve["metrics"]}


def thin_out(lines: Sequence[Mapping[str, float | None]], most: int = _POINTS) -> dict[str, Any]:
    """The curves of a log's lines, each with a `step`, as means over at most `most` equal parts.

    A value that is None, as an infinity is in a log, is no point of a curve. The step of a mean is
    the last one of its part.
    """
    every = max(1, -(-len(lines) // most))
    metrics: dict[str, list[tuple[int, float]]] = {}
    for start in range(0, len(lines), every):
        part = lines[start : start + every]
        for name in dict.fromkeys(name for line in part for name in line if name != "step"):
            values = [line[name] for line in part if line.get(name) is not None]
            if values:
                point = int(part[-1]["step"]), float(f"{np.mean(values):.5g}")
                metrics.setdefault(name, []).append(point)
    return {"every": every, "metrics": metrics}


def _read_log(path: Path) -> list[dict[str, float | None]]:
    lines = read_jsonl(path)
    for number, line in enumerate(lines, 1):
        numbers = line.values() if isinstance(line, dict) and "step" in line else [line]
        if not all(value is None or type(value) in (int, float) for value in numbers):
            raise RagJaxError(f"{path}:{number}: must be an object of numbers with a step")
    return lines
