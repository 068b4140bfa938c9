"""A rehearsal: a run with a preset's own numbers of everything but the models' sizes.

Host code, disk, memory and the logic of stages are tried at the counts that a preset is meant for,
on simulated devices, with models in miniature (`rag_jax.models.io.miniature`). Answers and scores
of models with random weights mean nothing.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import WorldConfig, build
from rag_jax.models.io.miniature import LAYERS, save_miniature
from rag_jax.pipeline.room import measure_folder
from rag_jax.pipeline.runner import run_session
from rag_jax.pipeline.stage import StageContext
from rag_jax.systems import open_room
from rag_jax.training.fit import limit_steps

DEVICES = 8
# The worlds of presets without one of their own: as many of the published questions and passages
# as the built-in encyclopedia has.
_OPEN = WorldConfig(cities=33_000, train=50_000, dev=6_515, test=3_610, talk_pages=2)
WORLDS = {
    # Natural Questions as DPR splits them: 58,880 questions to train on, 6,515 and 3,610 others,
    # and 21 million passages.
    "dpr": _OPEN,
    "rag": _OPEN,
    # 40,000 documents of several passages each.
    "self_retrieval": WorldConfig(cities=33_000, train=50_000, dev=2_000, test=4_000),
    # The banks of `docs/results/scale.md`: 50,000 questions, of which each finds three documents.
    "prag": WorldConfig(cities=30_000, train=600, dev=0, test=50_000),
}
# The settings that are scaled: numbers of passages and questions.
COUNTS = (
    *(f"world.{name}" for name in ("cities", "countries", "train", "dev", "test")),
    *("verbalise.pool", "warm_up.questions", "train.questions", "validation.questions"),
)
_MODELS = (
    *("model.name", "generator.name", "retriever.name", "retriever.passage_name"),
    *("encoder.name", "dense.encoder.name", "retrieve.encoder.name"),
)
_WRITTEN = Path("/proc/self/io")

Changes = dict[str, tuple[Any, Any]]
_Costs = dict[str, dict[str, float]]


def plan_rehearsal(
    config: ConfigDict, *, scale: float, preset: str, steps: int | None = None
) -> tuple[ConfigDict, Changes]:
    """The settings of a rehearsal, but for the models.

    Args:
        scale: factor on the numbers of passages and questions, `COUNTS`.
        preset: that `config` was made of; empty for a config file's small run.
        steps: as for `rehearse`. Epochs that do not end are not validated.

    Returns:
        The settings, and by the path of a changed one its old and its new value.
    """
    old = dict(_list_leaves(config))
    new, default = dict(old), open_room(config.system, "pipeline").CONFIG().world
    if preset and config.system in WORLDS and build(WorldConfig, config.world) == default:
        new |= {f"world.{name}": value for name, value in vars(WORLDS[config.system]).items()}
    new |= {path: math.ceil(new[path] * scale) for path in COUNTS if new.get(path)}
    if "verbalise.pool" in new:  # each context needs a cluster of its own
        new["verbalise.pool"] = max(new["verbalise.pool"], new["contexts"])
        new["datastore.layer"] = min(new["datastore.layer"], LAYERS)
    if "augment.by" in new:  # random weights write nothing that can be trained on
        new |= {"augment.by": "rules", "augment.model": None}
    # A CPU emulates the 16-bit types.
    new |= {path: "float32" for path in new if path.endswith(".dtype")}
    # Further epochs try nothing new.
    new |= {path: 1 for path in new if path.endswith("epochs") and new[path] > 1}
    if new.get("validation.after") is not None:
        new["validation.after"] = 0 if steps is None else None
    new |= {f"mesh.{axis}": size for axis, size in _fit_mesh(config.mesh).items()}
    return _change(config, new), {p: (old[p], new[p]) for p in new if old[p] != new[p]}


def _list_leaves(config: ConfigDict, path: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name in config:
        value = config[name]
        inner = isinstance(value, ConfigDict)
        leaves += _list_leaves(value, f"{path}{name}.") if inner else [(path + name, value)]
    return leaves


def _change(config: ConfigDict, leaves: Mapping[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():
        changed.update_from_flattened_dict(dict(leaves))
    return changed


def _fit_mesh(mesh: ConfigDict) -> dict[str, int]:
    """The mesh's shape with as many devices as a rehearsal has."""
    if mesh.model > 0:
        return {"data": -1, "model": math.gcd(mesh.model, DEVICES)}
    return {"data": math.gcd(mesh.data, DEVICES), "model": -1}


def put_miniatures(config: ConfigDict, folder: Path) -> ConfigDict:
    """The settings with each published model in miniature, saved in a folder of its own.

    Raises:
        RagJaxError: as `save_miniature`.
    """
    folders: dict[str, str] = {}
    for path, name in _list_leaves(config):
        if path not in _MODELS or name is None:
            continue
        place = folder / re.sub(r"\W+", "-", name)
        if not (place / "config.json").exists():
            save_miniature(name, place)
        folders[path] = str(place.absolute())
    return _change(config, folders)


def rehearse(config: ConfigDict, workdir: Path, *, steps: int | None = None) -> dict[str, Any]:
    """Runs a system's stages with the settings of a rehearsal; continues where it stopped.

    Args:
        workdir: for `models` and the work folder `run`.
        steps: maximum number of optimiser steps of a training; None for all.

    Returns:
        `mesh`, the numbers of `passages` and of `questions` by split, `environment`, and for each
        of the `stages` its "name", "seconds", "compile_seconds", "peak_bytes", "kept_bytes" on the
        disk and, where it was made by this call, "cpu_seconds" and "written_bytes".

    Raises:
        RagJaxError: as `put_miniatures` and `run_session`.
    """
    system = config.system
    config = put_miniatures(config, workdir / "models")
    pipeline, session = (open_room(system, room) for room in ("pipeline", "session"))
    settings = build(pipeline.CONFIG, config)
    opened, measured = session.Session(settings), {}
    stages = [
        replace(stage, run=partial(_measure, stage.run, measured))
        for stage in pipeline.list_stages(opened)
    ]
    with limit_steps(steps):
        described = pipeline.describe_report(settings)
        report = run_session(opened, stages, workdir / "run", described)
        opened.open_corpus(workdir / "run" / "stages" / "corpus")
    names = ("name", "seconds", "compile_seconds", "peak_bytes")
    return {
        "mesh": dict(opened.mesh.shape),
        "passages": len(opened.passages),
        "questions": {split: len(asked) for split, asked in opened.corpus.questions.items()},
        "environment": report["environment"],
        "stages": [
            {name: stage[name] for name in names}
            | {"kept_bytes": measure_folder(workdir / "run" / "stages" / stage["name"])}
            | measured.get(stage["name"], {})
            for stage in report["stages"]
        ],
    }


def _measure(
    run: Callable[[StageContext], None],
    measured: dict[str, dict[str, float]],
    context: StageContext,
) -> None:
    """Runs a stage and writes down its CPU seconds, and the bytes that it wrote."""
    start, written = time.process_time(), _count_written()
    run(context)
    costs = {
        "cpu_seconds": time.process_time() - start,
        "written_bytes": _count_written() - written,
    }
    measured[context.name] = costs


def _count_written() -> int:
    """Bytes that this process has written so far, 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(re.search(r"wchar: (\d+)", _WRITTEN.read_text())[1])
    return 0
