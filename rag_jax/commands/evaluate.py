"""Evaluates a finished work folder on another dataset, with the dataset's passages as the corpus.

    python launch/evaluate.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] --data=FOLDER [--split=test] [--entries=N] [--out=DIR]

The config and its changes are those that launch/train.py made the work folder with. Nothing is
trained, and nothing is written into that folder. Questions and passages are read as
--config.data.path would read them. report.json, report.html and predictions are written into the
folder --out or, without the flag, next to the work folder, with the dataset's name after the
folder's own.

--entries=N also evaluates with a datastore that has grown by N of the dataset's training questions.
"""

from pathlib import Path

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import list_systems, open_room

OPTIONS = {
    "workdir": "the work folder",
    "data": "the dataset's folder",
    "split": "which of its questions: test or dev",
    "entries": "number of its training questions that the datastore grows by",
    "out": "the folder for the report",
}


def main(arguments: list[str]) -> None:
    """Evaluates the command line's run."""
    config, options = command.read_command(arguments, OPTIONS)
    system = command.find_system(config, list_systems("transfer"))
    workdir = command.find_workdir(arguments, options)
    data, split = command.read_path(options, "data"), options["split"] or "test"
    if data is None:
        raise RagJaxError("--data=FOLDER is missing: the dataset to evaluate the run on")
    if split not in ("test", "dev"):
        raise RagJaxError(f"--split={split}: must be test or dev")
    entries = command.read_count(options, "entries") or 0
    out = command.read_path(options, "out") or Path(f"{workdir}-{data.resolve().name}")
    if out.resolve() == workdir.resolve():
        raise RagJaxError(f"--out={out}: is the work folder, which must not change")
    # Imported here because it takes a second; see `command`.
    from rag_jax.config import DataConfig

    command.keep_programs()
    transfer = open_room(system, "transfer")
    dataset = DataConfig(path=str(data))
    transfer.evaluate_on(config, workdir, dataset, split, out, entries=entries)


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
