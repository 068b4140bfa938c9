"""Compares systems on one corpus, with the same questions and the same models.

    python launch/compare.py --config=configs/compare.py [--config.data.path=FOLDER]
        [--config.field=value ...] [--workdir=DIR] [--overwrite]

Every system of --config.systems is trained and evaluated in a folder of its own within the work
folder, runs/compare unless --workdir names another, in a process of its own. Passages and questions
are read and chosen once, models and data are set once: what the systems' own settings have besides
is in --config.srrag, --config.rag, --config.self_retrieval and --config.prag. All answers are
graded by one rule: a gold answer occurs in the prediction in whole words.

report.html has one table of all rows with what they cost, the paired comparison with the row that
--config.reference names, such as rag.thorough, and charts of accuracy against seconds and bytes.

The same command again continues where the last one stopped. A system that fails is a row that says
why, the others go on, and the command ends with status 1. A finished comparison of other data or
settings, or a system's finished run, is overwritten only with --overwrite; systems may be added,
and the reference changed.
"""

from pathlib import Path
from typing import Any

from rag_jax.commands.describe import list_settings
from rag_jax.pipeline import command

OPTIONS = {"workdir": "the work folder"}
SWITCHES = {"overwrite": "overwrite a finished comparison of other data or settings"}


def main(arguments: list[str]) -> None:
    """Runs the command line's comparison."""
    values, options = command.read_command(arguments, OPTIONS, switches=SWITCHES)
    command.find_system(values, ("compare",))
    workdir: Path = command.find_workdir(arguments, options)
    # Imported here because it takes a second; see `command`.
    from rag_jax.comparison.config import read_config

    config = read_config(values)
    from rag_jax.comparison.run import compare

    compare(config, workdir, overwrite=options["overwrite"])


def describe(values: Any) -> str:
    """Every setting of a comparison; those that all systems share are there once.

    Raises:
        RagJaxError: the config is of no comparison, or has a value that is not allowed.
    """
    from rag_jax.comparison.config import list_hidden, read_config

    command.find_system(values, ("compare",))
    hidden = {f"config.{path}" for path in list_hidden()}
    return "\n".join(list_settings(read_config(values), "config", hidden=hidden))


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe)
