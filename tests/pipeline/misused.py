"""A tiny finished run of dense retrieval over a data folder, and the commands of a user on it."""

import contextlib
import io
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from rag_jax.data.gazetteer import build_world
from rag_jax.evaluation import report as reports
from rag_jax.pipeline import command
from rag_jax.runtime.files import write_jsonl

ROOT = Path(__file__).parents[2]
BERT = ROOT / "tests" / "golden" / "bert"
CONFIG = textwrap.dedent("""
    from rag_jax.config import choose_preset, to_config_dict
    from rag_jax.systems.dpr.config import DPRConfig
    from rag_jax.systems.prag.config import PRAGConfig

    def get_config(preset=""):
        config = to_config_dict(choose_preset({"": DPRConfig(), "prag": PRAGConfig()}, preset))
        changes = {
            "encoder.name": BERT,
            "encoder.max_length": 16,
            "depth": 3,
            "train.batch_size": 4,
            "train.microbatch_tokens": 64,
            "negatives.kept": 2,
        }
        if preset:
            changes = {"model.name": BERT}
        config.update_from_flattened_dict({"data.path": DATA, **changes})
        return config
""")


def write_data(folder):
    world = build_world(cities=4, countries=3, train=4, dev=0, test=3)
    folder.mkdir()
    write_jsonl(folder / "passages.jsonl", world.passages[:20])
    for split in ("train", "test"):
        rows = [
            {"id": q.id, "question": q.question, "answers": q.answers, "passage_id": passage.id}
            for q, passage in zip(world.questions[split], world.passages, strict=False)
        ]
        write_jsonl(folder / f"{split}_questions.jsonl", rows)


def read_bytes(folder):
    """Every file of a run; the lock holds the number of the last process."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Place:
    """A folder with data, a config file and the work folder of a run; `call` runs a command."""

    def __init__(self, folder):
        self.folder, self.run, self.data = folder, folder / "run", folder / "data"
        self.config = folder / "tiny.py"

    def write_config(self):
        text = CONFIG.replace("BERT", repr(str(BERT))).replace("DATA", repr(str(self.data)))
        self.config.write_text(text)

    def call(self, module, *arguments):
        """The exit status of a command on the run, unless the arguments name another folder."""
        flags = [f"--config={self.config}", f"--workdir={self.run}"]
        flags = flags[: 1 if "--untrained" in arguments else 2]
        names = [argument.split("=")[0] for argument in arguments]
        flags = [flag for flag in flags if flag.split("=")[0] not in names]
        with pytest.MonkeyPatch.context() as patch, keep_handlers():
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["launch", *flags, *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            patch.setattr(command, "keep_programs", lambda: None)
            patch.setattr(reports, "read_peak", lambda: 0)  # as of no other process
            return module.run()

    def copy(self, folder):
        """The same, with a run of its own that may be changed; data and config are shared."""
        other = Place(self.folder)
        other.run = Path(shutil.copytree(self.run, folder))
        return other


@contextlib.contextmanager
def keep_handlers():
    """Puts the handlers of signals back that a command installs."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
