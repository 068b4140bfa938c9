"""Compiles every program of a run for a TPU slice without having the slice, and says what it costs.

    python launch/plan.py --config=configs/srrag.py:llama2-7b --topology=v5e:8x8
        [--only=TEXT] [--config.field=value ...]

Needs `pip install -e '.[tpu]'`. --only plans the programs with a text in their names: a program of
a 7B model takes from seconds to six minutes. Memory and FLOPs are those of one device. The column
"at least" is a lower bound of the program's seconds, and "set by" is computing, memory or links,
whichever sets the bound. The exit status is 1 if a program does not fit; settings with which it
fits are then searched for.
"""

import os

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import list_systems, open_room

OPTIONS = {"topology": "the slice, such as v5e:8x8", "only": "part of a program's name"}


def main(arguments: list[str]) -> None:
    """Plans the command line's run."""
    config, options = command.read_command(arguments, OPTIONS)
    system = command.find_system(config, list_systems("plan"))
    if options["topology"] is None:
        raise RagJaxError("--topology is missing: write CHIP:AxB, such as --topology=v5e:8x8")
    # The slice is only described: JAX must not look for a real one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rag_jax.config import build
    from rag_jax.planning.run import plan_run

    settings = build(open_room(system, "pipeline").CONFIG, config)
    plan_run(open_room(system, "plan"), settings, options["topology"], only=options["only"] or "")


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
