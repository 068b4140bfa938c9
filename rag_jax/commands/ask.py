"""Answers questions from a finished work folder, and shows what each answer rests on.

    python launch/ask.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--corpus=PATH] [--json] ["QUESTION"]

The config and its changes are those that launch/train.py made the work folder with. Nothing is
trained, and nothing is written into the folder. Settings that training does not depend on can be
others, such as --config.route.tau, --config.answer.passages and --config.answer.max_tokens. Without
a question there is a prompt, which an empty line ends, or each line of standard input is a question
and blank lines are skipped. A question that begins with a dash is written after --.

--corpus searches your own passages in place of the run's: a file of JSON lines with `id`, `text`
and optionally `title`, or of passages in BEIR's, DPR's, FlashRAG's or KILT's format; a document
(.txt, .md, .html, .pdf or .docx, with the extra `documents`) or a folder of such; or the work
folder of launch/build_index.py. Passages are embedded at the first start, and their embeddings kept
in the user's cache.

--json prints one JSON object a question, in a line, and nothing else: `question`, `answer`,
`citations` (`rank`, `id`, `title`, `file`, `place`, `score`), `source`, `likelihood`, `threshold`,
`in_documents`, `verdict_precision` and `error`. There is no prompt. What is not known or does not
apply is null.
"""

import contextlib
import gc
import sys
from collections.abc import Callable
from functools import partial

from rag_jax.commands.describe import describe_config
from rag_jax.commands.finished import OPENING, FinishedRun, find_run
from rag_jax.pipeline import command
from rag_jax.runtime import signals
from rag_jax.runtime.errors import OutputError, RagJaxError
from rag_jax.runtime.terminal import write_error, write_text
from rag_jax.systems import open_room

# Imports and tracing make many objects and drop few: to look for cycles at every 700th takes a
# twentieth of the time of a first question.
_OBJECTS = 50_000
_SWITCHES = {"json": "one JSON object a question instead of text"}


def main(arguments: list[str]) -> None:
    """Answers the command line's question, or questions at a prompt."""
    gc.set_threshold(_OBJECTS, 20)
    flags, question = split_question(arguments)
    finished, given = find_run(flags, OPENING, "ask", switches=_SWITCHES)
    if question is not None and not question.strip():
        write_error("the question is blank: write one, or leave it out")
        sys.exit(2)
    for file in (sys.stdin, sys.stdout, sys.stderr):
        file.reconfigure(errors="replace")
    with signals.leave_within(signals.PATIENCE):
        _ask(finished, question, is_json=given["json"])


def _ask(finished: FinishedRun, question: str | None, *, is_json: bool) -> None:
    session = finished.open_session()
    # Imported here because it takes a second; see `command`.
    import jax

    from rag_jax.pipeline.ask import answer_in_json, answer_question

    with jax.set_mesh(session.mesh):
        room = open_room(finished.system, "ask")
        ask = room.open_run(session, finished.workdir, finished.corpus)
        signals.begin_work()
        answer = partial(answer_in_json if is_json else answer_question, ask)
        if question is not None:
            answer(question)
        else:
            converse(answer, is_json=is_json)


def split_question(arguments: list[str]) -> tuple[list[str], str | None]:
    """The flags, each with its value, and the question if there is one.

    Raises:
        RagJaxError: there are several questions.
    """
    at = arguments.index("--") if "--" in arguments else len(arguments)
    flags, words = [], []
    for argument in arguments[:at]:
        if argument.startswith("-"):
            flags.append(argument)
        elif flags and _takes_value(flags[-1]):
            flags[-1] += f"={argument}"
        else:
            words.append(argument)
    if at < len(arguments):
        flags, words = [*flags, *words], arguments[at + 1 :]
    if len(words) > 1:
        raise RagJaxError(f"{words[1]!r} is a second question: put the whole one in quotes")
    return flags, words[0] if words else None


def _takes_value(flag: str) -> bool:
    """Whether a flag's value is the next word."""
    name = flag.lstrip("-")
    is_switch = name.removeprefix("no") in _SWITCHES or name.startswith("noconfig.")
    return bool(name) and "=" not in name and not is_switch


def converse(answer: Callable[[str], None], *, is_json: bool = False) -> None:
    """Answers line after line; at a terminal, until a line is empty.

    At a terminal, Ctrl-C ends the present answer only, and a refused question does not end the
    prompt. Elsewhere blank lines are skipped and counted, and every question is printed. With
    `is_json` there is no prompt, and an object says what a question was refused for.

    Raises:
        RagJaxError: what is not typed is UTF-16, as some shells write it, or the answers cannot be
            written.
    """
    from rag_jax.pipeline.ask import Outcome, clean, describe_outcome

    person = sys.stdin.isatty() and sys.stdout.isatty() and not is_json
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, gives `input` its history and editing keys
    blank = 0
    while True:
        try:
            line = input("question: " if person else "")
        except EOFError:
            break
        line = line.removeprefix("\ufeff")  # a mark of UTF-8 at the head of a file
        if "\0" in line:
            raise RagJaxError("standard input is UTF-16 or no text: save it as UTF-8")
        if not line.strip():
            if person:
                break
            blank += 1
            continue
        if not person and not is_json:
            write_text(f"question: {clean(line)}")
        try:
            answer(line)
        except OutputError:
            raise
        except RagJaxError as error:
            write_error(error)
            if is_json:
                write_text(describe_outcome(clean(line), Outcome(None, []), str(error)))
        except KeyboardInterrupt:
            if not person:
                raise
            write_text("\ninterrupted", sys.stderr)
            signals.begin_work()
    if blank:
        write_text(f"{blank} blank line{'s' * (blank > 1)} skipped", sys.stderr)


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, resumes=False, describe=describe_config)
