"""Answers questions from a finished work folder, and shows what the answers rest on.

    python launch/ask.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--corpus=FILE] ["QUESTION"]

The config and its changes are those that launch/train.py made the work folder with; nothing is
trained, and nothing written into it. Without a question there is a prompt for many, or each line of
what is piped in is one; an empty line ends it. A question that begins with a dash comes behind --.

--corpus searches one's own passages in place of the run's: JSON lines with `id`, `text` and, where
there is one, `title`, or BEIR's, DPR's, FlashRAG's or KILT's. They are embedded at the start.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

# The package of this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch import command
from rag_jax.runtime.errors import RagJaxError

SYSTEMS = {
    name: f"rag_jax.systems.{name}.ask"
    for name in ("dpr", "prag", "rag", "self_retrieval", "srrag")
}
OPTIONS = {"workdir": "the work folder", "corpus": "passages of one's own"}


def main(arguments: list[str]) -> None:
    """Answers the command line's question, or those of a prompt."""
    flags, question = split_question(arguments)
    config, options = command.read_command(flags, OPTIONS)
    name = command.find_system(config, SYSTEMS)
    workdir = command.find_workdir(flags, options)
    corpus = None if options["corpus"] is None else Path(options["corpus"])
    if question is not None and not question.strip():
        print("error: the question is blank: write one, or leave it out", file=sys.stderr)
        sys.exit(2)
    for file in (sys.stdin, sys.stdout, sys.stderr):
        file.reconfigure(errors="replace")
    # Imported here because it takes a second: mistakes are told, and Ctrl-C obeyed, before.
    import jax

    from rag_jax.config import build
    from rag_jax.pipeline.ask import answer_question

    command.keep_programs(workdir)
    system = importlib.import_module(name)
    session = system.Session(build(system.CONFIG, config))
    with jax.set_mesh(session.mesh):
        ask = system.open_run(session, workdir, corpus)
        if question is not None:
            answer_question(ask, question)
        else:
            converse(lambda line: answer_question(ask, line))


def split_question(arguments: list[str]) -> tuple[list[str], str | None]:
    """The flags, and the question if there is one.

    Raises:
        RagJaxError: there are several.
    """
    if "--" in arguments:
        at = arguments.index("--")
        flags, words = arguments[:at], arguments[at + 1 :]
    else:
        flags = [argument for argument in arguments if argument.startswith("-")]
        words = [argument for argument in arguments if not argument.startswith("-")]
    if len(words) > 1:
        raise RagJaxError(f"{words[1]!r} is a second question: put the whole one in quotes")
    return flags, words[0] if words else None


def converse(answer: Callable[[str], None]) -> None:
    """Answers line after line until one is empty or there are no more.

    Where there is a person, Ctrl-C ends an answer only, and a question that is refused is no end.
    """
    person = sys.stdin.isatty() and sys.stdout.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, gives `input` its history and editing keys
    while True:
        try:
            line = input("question: " if person else "")
        except EOFError:
            line = ""
        if not line:
            return
        try:
            answer(line)
        except RagJaxError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not person:
                raise
            print("\ninterrupted", file=sys.stderr)


def run() -> int:
    """Runs `main` and gives the exit status."""
    return command.run(main, __doc__, interrupted="interrupted")


if __name__ == "__main__":
    sys.exit(run())
