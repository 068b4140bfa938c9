"""The command `rag-jax`: every command by its name.

    rag-jax COMMAND ...
    rag-jax COMMAND --help

`rag-jax train ...` is `python launch/train.py ...`, and so on; `--config=srrag` is the config file
`configs/srrag.py` of the folder you are in or, failing that, the one that comes with the package.
"""

import importlib
import sys
from pathlib import Path

from rag_jax import __version__
from rag_jax.pipeline import command
from rag_jax.runtime import signals
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text

# Each command's module and purpose.
COMMANDS = {
    "train": ("train", "train and evaluate a system, from nothing to a report"),
    "ask": ("ask", "answer questions from a finished run"),
    "serve": ("serve", "serve a finished run in the format of OpenAI's API"),
    "evaluate": ("evaluate", "evaluate a finished run, or models as loaded, on another dataset"),
    "compare": ("compare", "compare systems on your corpus and questions, in one table"),
    "questions": ("write_questions", "write questions about your documents, by a language model"),
    "report": ("report", "write the page of finished runs, side by side if several"),
    "plan": ("plan", "what a run costs on a TPU slice, without the slice"),
    "rehearse": ("rehearse", "try a preset's counts on this machine, with models in miniature"),
    "index": ("build_index", "build an index over your passages"),
    "list": ("list_configs", "the config files and their presets"),
}
# The modules of commands that keep nothing when they are stopped.
_UNSAVED = ("ask", "plan", "report", "list_configs")


def run() -> int:
    """Runs the command that the first argument names; returns the exit status."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--version", "-V"):
        return command.run(lambda _: write_text(__version__), "")
    if name in ("--help", "-h", "help"):
        lines = [f"    {name:10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
        text = __doc__ + "\n" + "\n".join(lines)
        return command.run(lambda _: write_text(text), text)
    if name not in COMMANDS:

        def refuse(_: list[str]) -> None:
            raise RagJaxError(f"{name}: no such command; there are {', '.join(COMMANDS)}")

        return command.run(refuse, "")
    sys.argv = [f"{Path(sys.argv[0]).name} {name}", *rest]
    return run_module(COMMANDS[name][0])


def run_module(name: str) -> int:
    """Runs a command by the name of its module; returns the exit status.

    The module is imported here, because that takes half a second, in which Ctrl-C is obeyed. After
    a signal the process ends at once: the end of the interpreter would wait for what XLA compiles
    in its own threads, and crash on it.
    """
    signals.start("interrupted", resumes=name not in _UNSAVED)
    status = importlib.import_module(f"rag_jax.commands.{name}").run()
    if signals.noted():
        signals.leave(status)
    return status
