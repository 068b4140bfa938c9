"""Lists the config files of the package, with their presets.

    rag-jax list

`--config=NAME` or `--config=NAME:PRESET` chooses one of them; `rag-jax train --config=NAME --help`
lists its settings.
"""

import runpy

from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text


def main(arguments: list[str]) -> None:
    """Prints the list."""
    if arguments:
        raise RagJaxError(f"{arguments[0]}: this command takes no arguments")
    for path in command.list_config_files():
        found = runpy.run_path(str(path))
        write_text(f"{path.stem:16}{found['__doc__'].splitlines()[0]}")
        if presets := ", ".join(name for name in found["PRESETS"] if name):
            write_text(f"{'':16}presets: {presets}")


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, resumes=False)
