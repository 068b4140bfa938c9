"""Answers questions from a finished work folder, and shows what each answer rests on.

    python launch/ask.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--corpus=FILE] ["QUESTION"]

The config and its changes are those that launch/train.py made the work folder with. Nothing is
trained, and nothing is written into the folder. Without a question there is a prompt, or each line
of standard input is a question; an empty line ends either. A question that begins with a dash is
written after --.

--corpus searches your own passages in place of the run's: JSON lines with `id`, `text` and
optionally `title`, or passages in BEIR's, DPR's, FlashRAG's or KILT's format. They are embedded at
the start.
"""

import contextlib
import sys
from collections.abc import Callable

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_error, write_text
from rag_jax.systems import list_systems, open_room

OPTIONS = {"workdir": "the work folder", "corpus": "a file of your own passages"}


def main(arguments: list[str]) -> None:
    """Answers the command line's question, or questions at a prompt."""
    flags, question = split_question(arguments)
    config, options = command.read_command(flags, OPTIONS)
    name = command.find_system(config, list_systems("ask"))
    workdir = command.find_workdir(flags, options)
    corpus = command.read_path(options, "corpus")
    if question is not None and not question.strip():
        write_error("the question is blank: write one, or leave it out")
        sys.exit(2)
    for file in (sys.stdin, sys.stdout, sys.stderr):
        file.reconfigure(errors="replace")
    # Imported here because it takes a second; see `command`.
    import jax

    from rag_jax.config import build
    from rag_jax.pipeline.ask import answer_question

    command.keep_programs()
    pipeline = open_room(name, "pipeline")
    session = pipeline.Session(build(pipeline.CONFIG, config))
    with jax.set_mesh(session.mesh):
        ask = open_room(name, "ask").open_run(session, workdir, corpus)
        if question is not None:
            answer_question(ask, question)
        else:
            converse(lambda line: answer_question(ask, line))


def split_question(arguments: list[str]) -> tuple[list[str], str | None]:
    """The flags, and the question if there is one.

    Raises:
        RagJaxError: there are several questions.
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
    """Answers line after line until a line is empty or there is none left.

    At a terminal, Ctrl-C ends the present answer only, and a refused question does not end the
    prompt.
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
            write_error(error)
        except KeyboardInterrupt:
            if not person:
                raise
            write_text("\ninterrupted", sys.stderr)


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, interrupted="interrupted", describe=describe_config)
