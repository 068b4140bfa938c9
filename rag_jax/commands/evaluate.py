"""Evaluates a finished work folder on another dataset, with the dataset's passages as the corpus.

    python launch/evaluate.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR | --untrained] --data=FOLDER [--format=auto] [--split=test] [--entries=N]
        [--out=DIR] [--overwrite]

The config and its changes are those that launch/train.py made the work folder with. Nothing is
trained, and nothing is written into that folder: the trained models are read from it, and what
depends on the passages, such as an index, a trie or the adapters of documents, is made anew.
Questions and passages are read as --config.data.path would read them, with the run's bad_lines,
passage_words and seed of config.data; --format stands for its format. report.json, report.html and
predictions are written into the folder --out or, without the flag, next to the work folder, with
the dataset's name after the folder's own, and "dev" if the split is. The same command again
continues there, and makes anew what was built on a stage that has been trained again since. Results
on other data, of another model or of other settings, are overwritten only with --overwrite.

--untrained evaluates the models as loaded, before any training, in place of a work folder. Rows
that need training are left out. Results go to runs/<config>-untrained-<dataset>, or to --out.

--entries=N also evaluates SR-RAG with a datastore that has grown by N of the dataset's training
questions.
"""

import os
from pathlib import Path
from typing import Any

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import list_systems, open_room

OPTIONS = {
    "workdir": "the work folder",
    "data": "the dataset's folder",
    "format": "the format of its questions",
    "split": "which of its questions: test or dev",
    "entries": "number of its training questions that SR-RAG's datastore grows by",
    "out": "the folder for the report",
}
SWITCHES = {
    "untrained": "evaluate the models as loaded, without a work folder",
    "overwrite": "overwrite results on other data or of other settings",
}


def main(arguments: list[str]) -> None:
    """Evaluates the command line's run."""
    config, options = command.read_command(arguments, OPTIONS, switches=SWITCHES)
    system = command.find_system(config, list_systems("pipeline"))
    data, split = command.read_path(options, "data"), options["split"] or "test"
    if data is None:
        raise RagJaxError("--data=FOLDER is missing: the dataset to evaluate the run on")
    if split not in ("test", "dev"):
        raise RagJaxError(f"--split={split}: must be test or dev")
    entries = _read_entries(options, system)
    workdir = command.find_workdir(arguments, options)
    parts = [Path(part).resolve().name for part in str(data).split(os.pathsep)]
    name = "-".join(parts + ["dev"] * (split == "dev"))
    if options["untrained"]:
        if options["workdir"]:
            raise RagJaxError("--untrained: takes no work folder; leave --workdir out")
        beside, workdir = Path(f"{workdir}-untrained-{name}"), None
    else:
        named = workdir if workdir.name not in ("", "..") else workdir.resolve()
        beside = Path(f"{named}-{name}")
    out = command.read_path(options, "out") or beside
    # Imported here because it takes a second; see `command`.
    from rag_jax.config import DataConfig

    command.keep_programs()
    read = {name: config.data[name] for name in ("bad_lines", "passage_words", "seed")}
    dataset = DataConfig(path=str(data), format=options["format"] or "auto", **read)
    inputs = config, workdir, dataset, split, out
    more = {"overwrite": options["overwrite"]}
    if entries:
        open_room(system, "entries").evaluate_with_entries(*inputs, entries=entries, **more)
    else:
        open_room(system, "pipeline").evaluate_on(*inputs, **more)


def _read_entries(options: dict[str, Any], system: str) -> int:
    """The number of entries; raises a RagJaxError if there is no datastore that they could join."""
    entries = command.read_count(options, "entries") or 0
    if entries and system not in list_systems("entries"):
        raise RagJaxError(f"--entries={entries}: config.system={system!r} has no datastore")
    if entries and options["untrained"]:
        raise RagJaxError(f"--entries={entries}: an untrained model has no datastore to grow")
    return entries


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
