"""Runs a preset at its own counts, with models in miniature, and says what every stage costs.

    python launch/rehearse.py --config=configs/srrag.py:llama2-7b [--scale=0.1] [--steps=N]
        [--workdir=DIR] [--results=FILE] [--config.field=value ...]

A rehearsal is for the host: its code, disk and memory, and the logic of stages. The corpus, the
questions, batch sizes and widths are the preset's, over the built-in encyclopedia; a preset that
names no world has as many of its published passages and questions as the encyclopedia has. Models
have the published vocabulary, two layers, a width of 32 and random weights, and run on eight
simulated devices, in the preset's mesh. Nothing is downloaded but two small tokenizers.

--scale is a factor from 0 to 1 on numbers of passages and questions; batch sizes and widths stay.
--steps is the maximum number of optimiser steps of a training; the others are like them. All
settings that differ from the preset's are printed first. The same command again continues where the
last one stopped. --results writes the numbers as JSON.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text
from rag_jax.systems import list_systems

OPTIONS = {
    "scale": "factor on the numbers of passages and questions",
    "steps": "maximum number of optimiser steps of a training",
    "workdir": "the work folder",
    "results": "a JSON file for the numbers",
}


def main(arguments: list[str]) -> None:
    """Rehearses the command line's run."""
    config, options = command.read_command(arguments, OPTIONS)
    command.find_system(config, list_systems("pipeline"))
    scale, steps = _read_scale(options["scale"]), command.read_count(options, "steps")
    file, preset = command.find_config_file(arguments), command.find_preset(arguments)
    workdir = command.read_path(options, "workdir")
    if workdir is None:
        workdir = Path("runs") / "-".join(filter(None, ("rehearsal", file.stem, preset)))
    results = command.read_path(options, "results")
    # Before JAX is asked for its devices.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rag_jax.systems.rehearsal import DEVICES, plan_rehearsal, rehearse

    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    from rag_jax.runtime.files import explain_disk_errors, write_json

    command.keep_programs()
    planned, changes = plan_rehearsal(config, scale=scale, preset=preset, steps=steps)
    for path, (old, new) in changes.items():
        write_text(f"config.{path}: {old} -> {new}")
    measured = rehearse(planned, workdir, steps=steps)
    given = [a for a in arguments if a.lstrip("-").startswith("config.")]
    asked = {"config": file.stem, "preset": preset, "scale": scale, "steps": steps, "given": given}
    described = {"changes": changes, **measured}
    write_text("\n" + describe_rehearsal(measured))
    if results is not None:
        with explain_disk_errors(results):
            results.parent.mkdir(parents=True, exist_ok=True)
            write_json(results, {**asked, **described})


def _read_scale(text: str | None) -> float:
    try:
        scale = 1.0 if text is None else float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale <= 1:
        raise RagJaxError(f"--scale={text}: must be a number above 0, and at most 1")
    return scale


def describe_rehearsal(measured: Mapping[str, Any]) -> str:
    """What `rehearse` measured, as text: the counts, and a table with a row a stage."""
    from rag_jax.evaluation.tables import format_columns

    asked = ", ".join(f"{count:,} {split}" for split, count in measured["questions"].items())
    mesh = " by ".join(f"{size} {axis}" for axis, size in measured["mesh"].items())
    head = ["stage", "seconds", "compiling", "CPU s", "peak MB", "written MB", "kept MB"]
    rows = [
        [
            stage["name"],
            *(f"{stage[name]:.1f}" for name in ("seconds", "compile_seconds")),
            f"{stage['cpu_seconds']:.1f}" if "cpu_seconds" in stage else "-",
            *(
                f"{stage[name] / 1e6:.1f}" if name in stage else "-"
                for name in ("peak_bytes", "written_bytes", "kept_bytes")
            ),
        ]
        for stage in measured["stages"]
    ]
    counted = f"{measured['passages']:,} passages; questions: {asked}; mesh {mesh}"
    return f"{counted}\n\n{format_columns([head, *rows])}"


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
