"""Compiles every program of a run for a TPU slice that need not be there, and says what it takes.

    python launch/plan.py --config=configs/srrag.py:llama2-7b --topology=v5e:8x8
        [--only=TEXT] [--config.field=value ...]

Needs `pip install -e '.[tpu]'`. --only plans the programs with a text in their names: one of a 7B
model takes from seconds to six minutes. Memory and FLOPs are those of one device. The last column
but one is what no run can be faster than, and the last whether computing, memory or links set it.
The exit status is 1 when a program does not fit; settings with which it does are then looked for.
"""

import importlib
import os
import sys
from pathlib import Path

# The package of this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch import command
from rag_jax.runtime.errors import RagJaxError

SYSTEMS = {name: f"rag_jax.systems.{name}.plan" for name in ("srrag", "rag")}
OPTIONS = {"topology": "the slice, such as v5e:8x8", "only": "part of a program's name"}


def main(arguments: list[str]) -> None:
    """Plans the command line's run."""
    config, options = command.read_command(arguments, OPTIONS)
    module = command.find_system(config, SYSTEMS)
    if options["topology"] is None:
        raise RagJaxError("--topology is missing: write CHIP:AxB, such as --topology=v5e:8x8")
    # The slice is only described: nothing may look for a real one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rag_jax import planning
    from rag_jax.config import build

    plan = importlib.import_module(module)
    built = build(plan.CONFIG, config)
    planning.plan_run(plan, built, options["topology"], only=options["only"] or "")


def run() -> int:
    """Runs `main` and gives the exit status."""
    return command.run(main, __doc__)


if __name__ == "__main__":
    sys.exit(run())
