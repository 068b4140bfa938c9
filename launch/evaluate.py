"""Evaluates a finished work folder on another dataset, which its passages come with.

    python launch/evaluate.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] --data=FOLDER [--split=test] [--out=DIR]

The config and its changes are those that launch/train.py made the work folder with; nothing is
trained, and nothing written into it. Questions and passages are read as --config.data.path would
have them, and report.json, report.html and predictions are written into the folder --out, or else
beside the work folder, with the dataset's name behind its own.
"""

import importlib
import sys
from pathlib import Path

# The package of this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch import command
from rag_jax.runtime.errors import RagJaxError

SYSTEMS = {"srrag": "rag_jax.systems.srrag.transfer"}
OPTIONS = {
    "workdir": "the work folder",
    "data": "the dataset's folder",
    "split": "which of its questions: test or dev",
    "out": "the folder for the report",
}


def main(arguments: list[str]) -> None:
    """Evaluates the command line's run."""
    config, options = command.read_command(arguments, OPTIONS)
    module = command.find_system(config, SYSTEMS)
    workdir = command.find_workdir(arguments, options)
    if not options["data"]:
        raise RagJaxError("--data=FOLDER is missing: what the run is evaluated on")
    data, split = Path(options["data"]), options["split"] or "test"
    if split not in ("test", "dev"):
        raise RagJaxError(f"--split={split}: must be test or dev")
    out = Path(options["out"] or f"{workdir}-{data.resolve().name}")
    if out.resolve() == workdir.resolve():
        raise RagJaxError(f"--out={out}: is the work folder, which stays as it is")
    # Imported here because it takes a second: mistakes are told, and Ctrl-C obeyed, before.
    from rag_jax.config import DataConfig

    command.keep_programs(workdir)
    system = importlib.import_module(module)
    system.evaluate_on(config, workdir, DataConfig(path=str(data)), split, out)


def run() -> int:
    """Runs `main` and gives the exit status."""
    return command.run(main, __doc__)


if __name__ == "__main__":
    sys.exit(run())
