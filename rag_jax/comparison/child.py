"""The process that runs one system of a comparison; started by `runs.run_system` alone.

A process of its own has the memory of one system, and whatever ends it, the others go on.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

from rag_jax.pipeline import command
from rag_jax.runtime import signals
from rag_jax.systems import open_room

DONE = "done"


def main(arguments: list[str]) -> None:
    """Runs a system in a work folder.

    Args:
        arguments: the system, its work folder, and the number of the open file in which the
            process says `DONE`, or what ended it. Its settings, and whether they may overwrite a
            finished run, come as a line of standard input, which stays open for as long as the
            comparison lives.
    """
    system, folder, number = arguments
    settings, overwrite = json.loads(sys.stdin.readline())
    watch()
    with open(int(number), "w", encoding="utf-8") as outcome:
        try:
            command.keep_programs()
            run = open_room(system, "pipeline").run
            run(settings, Path(folder), overwrite=overwrite, verdicts=False)
        except Exception as error:
            kind = "" if type(error).__module__.startswith("rag_jax.") else type(error).__name__
            text = " ".join(str(error).split())
            outcome.write(": ".join(filter(None, (kind, text))))
            raise
        outcome.write(DONE)


def watch() -> None:
    """Has this process end as SIGTERM ends it, its work saved, when the comparison has ended."""

    def wait() -> None:
        os.read(0, 1)  # not by `sys.stdin`, whose lock the end of the interpreter would wait for
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    saved = "the run of the system has stopped, and what it made is kept"
    status = command.run(main, __doc__, interrupted=saved)
    if signals.noted():
        signals.leave(status)
    sys.exit(status)
