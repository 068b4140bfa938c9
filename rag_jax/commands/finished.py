"""What commands that open a finished work folder share: which run it is, and its session."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rag_jax.pipeline import command
from rag_jax.runtime.terminal import write_text
from rag_jax.systems import list_systems, open_room

# The flags that open it: what each is for.
OPENING = {
    "workdir": "the work folder",
    "corpus": "your own passages: a file, a folder of documents, or that of build_index",
}


class FinishedRun(NamedTuple):
    """A run that the command line names.

    Attributes:
        system: the name of the run's system.
        corpus: passages to search in place of the run's; None for those.
    """

    config: Any
    system: str
    workdir: Path
    corpus: Path | None

    def open_session(self) -> Any:
        """The session of the run's system, and a line that says what is being opened.

        Raises:
            RagJaxError: there is no run; nothing has been downloaded for it.
        """
        # Imported here because it takes a second; see `command`.
        from rag_jax.config import build
        from rag_jax.pipeline.finished import check_run

        check_run(self.workdir)
        write_text(f"opening {self.workdir}: models, passages, index", sys.stderr)
        command.keep_programs()
        pipeline = open_room(self.system, "pipeline")
        return pipeline.Session(build(pipeline.CONFIG, self.config))


def find_run(
    arguments: list[str],
    options: Mapping[str, str],
    room: str,
    *,
    switches: Mapping[str, str] | None = None,
) -> tuple[FinishedRun, dict[str, Any]]:
    """The run that the command line names, and the options that it gives.

    Args:
        options: `OPENING` and further ones.
        room: that the run's system needs.
        switches: as for `read_command`.

    Raises:
        RagJaxError: a flag is wrong, or the system has no such room.
    """
    config, given = command.read_command(arguments, options, switches=switches)
    system = command.find_system(config, list_systems(room))
    workdir, corpus = command.find_workdir(arguments, given), command.read_path(given, "corpus")
    return FinishedRun(config, system, workdir, corpus), given
