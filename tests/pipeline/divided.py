"""A run that workers open: two maps of one stage, with faults on some items, and notes of it all.

Notes are files in a folder: a line for every opened run and for every made batch, with the process.
"""

import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rag_jax.commands import train
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.pipeline.workers import Opener
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.hosts import is_first

ITEMS, SIZE = list(range(11)), 2
MAPS = ("out.jsonl", "out.npy")
PIECES = 6  # of each map


def note(notes, name, text=""):
    with open(Path(notes) / name, "a") as file:
        file.write(f"{os.getpid()} {text}\n")


def read_notes(notes, name):
    """For each line of a note the process and the text."""
    path = Path(notes) / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(line.split(" ", 1)) for line in lines]


def suffer(notes, fault):
    """What happens on an item: its kind, and after a colon how often, or for what is waited."""
    kind, _, more = fault.partition(":")
    if more.isdecimal() and len(read_notes(notes, kind)) >= int(more):
        return
    note(notes, kind)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise ValueError("no such luck")
    if kind == "refuse":
        raise RagJaxError("the disk is full: free some space")
    end = time.monotonic() + 60
    while kind == "wait" and not (Path(notes) / more).exists() and time.monotonic() < end:
        time.sleep(0.05)


def open_divided(notes, faults):
    """The stages of the run. `weights` of the notes are read as a model's would be."""
    note(notes, "opened")
    weights = (Path(notes) / "weights").read_text()

    def work(kind, make):
        def run(batch):
            for item in batch:
                suffer(notes, faults.get(f"{kind} {item}", "none:0"))
            note(notes, "made", f"{kind} {batch[0]}")
            return make(batch)

        return run

    def first(context):
        write_json(context.folder / "factor", 3)

    def both(context):
        if not is_first():  # in a worker, which opens the stage
            suffer(notes, faults.get("open", "none:0"))
        factor = read_json(context.path("first", "factor"))
        write_json(context.folder / "begun", os.getpid())
        sizes = {"batch_size": SIZE, "unit": "items"}

        def make_records(batch):
            return [{"item": item, "third": item / factor} for item in batch]

        records = context.map("out.jsonl", ITEMS, work("records", make_records), **sizes)

        def make_rows(batch):
            return np.asarray(batch, np.float32)[:, None] * records[-1]["third"] / [1.0, 7.0]

        rows = context.map("out.npy", ITEMS, work("rows", make_rows), **sizes)
        write_json(context.folder / "sum", float(rows.sum()))
        write_json(context.folder / "ended", os.getpid())

    return None, [
        Stage("first", first),
        Stage("both", both, {"weights": weights}, needs=("first",), divisible=MAPS),
    ]


def make_opener(notes, **faults):
    """The opener of a run with faults by item, such as `{"records 3": "die:1"}`."""
    notes.mkdir(exist_ok=True)
    if not (notes / "weights").exists():
        (notes / "weights").write_text("first")
    return Opener(open_divided, {"notes": str(notes), "faults": faults})


def run(workdir, opener, executor=None):
    """Runs the stages, here or by an executor's workers."""
    stages = opener.function(**opener.arguments)[1]
    divide = executor and partial(executor.divide, opener)
    return run_stages(stages, workdir, divide=divide)


def read_results(workdir):
    """The files of the stage by name, but for those of one run alone."""
    own = ("started.json", "stage.json", "begun", "ended")
    folder = workdir / "stages" / "both"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in own}


def launch():
    """The command launch/train.py with this run in a system's place; gives its exit status."""
    notes = Path(os.environ["NOTES"])

    def run_here(config, workdir, *, executor, seeds, overwrite):
        run(workdir, make_opener(notes, **{"records 10": "wait:go"}), executor)

    train.open_room = lambda *room: SimpleNamespace(run=run_here)
    return train.run()
