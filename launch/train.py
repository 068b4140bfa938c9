"""Runs every stage of a system and ends with a table, report.json and report.html.

    python launch/train.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--coordinator=HOST:PORT --processes=N --process=I | --coordinator=auto]
        [--shard=I/N]

The work folder is runs/<config> unless --workdir names another. The same command again continues
where the last one stopped; with another setting it redoes just what that setting affects.

On several hosts the same command runs on each, with the same work folder, which all of them must
see: --coordinator is then the address of process 0, or `auto` on Cloud TPU.

Encoding a corpus, labelling, encoding documents and the like can be divided over N processes that
share nothing but the work folder: --shard=I/N, with I from 0 to N - 1, makes every N-th batch, and
shard 0 all else too, while the others wait. Each can be stopped and started again by itself.
"""

import importlib
import sys
from pathlib import Path

# The package of this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch import command
from rag_jax.runtime.errors import RagJaxError

SYSTEMS = {
    name: f"rag_jax.systems.{name}.pipeline"
    for name in ("dpr", "prag", "rag", "self_retrieval", "srrag")
}
OPTIONS = {
    "workdir": "the work folder",
    "coordinator": "address of the first of several processes",
    "processes": "how many there are",
    "process": "number of this one",
    "shard": "I/N: make the I-th of N shards of every stage that is divided",
}


def main(arguments: list[str]) -> None:
    """Runs the command line's system."""
    config, options = command.read_command(arguments, OPTIONS)
    module = command.find_system(config, SYSTEMS)
    workdir = command.find_workdir(arguments, options)
    processes, process = (command.read_count(options, name) for name in ("processes", "process"))
    coordinator, shard = options["coordinator"], command.read_shard(options["shard"])
    if coordinator is None and (processes, process) != (None, None):
        raise RagJaxError("--processes and --process need --coordinator=HOST:PORT")
    if coordinator is not None and shard is not None:
        raise RagJaxError("--shard: its processes need no --coordinator; leave one of them out")
    # Imported here because it takes a second: mistakes are told, and Ctrl-C obeyed, before.
    import jax

    from rag_jax import hosts

    command.keep_programs(workdir)
    if coordinator is not None:
        hosts.connect(coordinator, processes, process)
    try:
        importlib.import_module(module).run(config, workdir, shard=shard)
    finally:
        if coordinator is not None:
            jax.distributed.shutdown()


def run() -> int:
    """Runs `main` and gives the exit status."""
    return command.run(main, __doc__)


if __name__ == "__main__":
    sys.exit(run())
