"""Runs every stage of a system and ends with a table, report.json and report.html.

    python launch/train.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--coordinator=HOST:PORT --processes=N --process=I | --coordinator=auto]
        [--executor=ray [--ray_address=auto] [--workers=N] [--worker_resources='{"TPU": 4}']]
        [--seeds=N] [--overwrite]

The work folder is runs/<config> unless --workdir names another. The same command again continues
where the last one stopped; with a changed setting it redoes only the stages that depend on it. A
finished run is overwritten by other data, models or training settings only with --overwrite.

On several hosts the same command runs on each host, with one work folder that all hosts see.
--coordinator is the address of process 0, or `auto` on Cloud TPU.

Work that goes through a corpus or through questions item by item (encoding a corpus, labels,
documents, adapters, answers) can be done by workers, which need nothing in common but the work
folder. --executor=ray starts them through Ray: on this machine or, with --ray_address, on the
cluster that this machine belongs to. There are --workers of them, each with --worker_resources;
without --workers, as many as there are places. Results are those of one process. Workers may join
and leave; the same command continues, with an executor or without one.

--seeds=N runs training and evaluation with N seeds, from config.seed on. The first is the work
folder's own run; further ones, in DIR/seeds/<seed>, take from it what does not depend on the seed.
DIR/seeds/report.html has means, deviations and the paired comparison over all of them.
"""

from typing import Any

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command, executors
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import list_systems, open_room

OPTIONS = {
    "workdir": "the work folder",
    "coordinator": "address of the first of several processes",
    "processes": "number of processes",
    "process": "number of this process, from 0",
    "seeds": "number of seeds to run",
    **executors.FLAGS,
}
SWITCHES = {"overwrite": "overwrite a finished run that has other settings"}


def read(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """The config, and by name what the flags say; runs nothing.

    Raises:
        RagJaxError: a flag or a field that there is not, or a value that it cannot have.
    """
    config, options = command.read_command(arguments, OPTIONS, switches=SWITCHES)
    found = {"system": command.find_system(config, list_systems("pipeline"))}
    found["workdir"] = command.find_workdir(arguments, options)
    found |= {name: command.read_count(options, name) for name in ("processes", "process")}
    found["workers"] = executors.read_executor(options)
    if options["coordinator"] is None and (found["processes"], found["process"]) != (None, None):
        raise RagJaxError("--processes and --process need --coordinator=HOST:PORT")
    found["seeds"] = command.read_count(options, "seeds")
    if found["seeds"] == 0:
        raise RagJaxError("--seeds=0: must be at least 1")
    if options["coordinator"] is not None and found["workers"] is not None:
        raise RagJaxError("--executor=ray: needs no --coordinator; leave one of the two out")
    return config, found | {name: options[name] for name in ("coordinator", "overwrite")}


def main(arguments: list[str]) -> None:
    """Runs the command line's system."""
    config, options = read(arguments)
    coordinator = options["coordinator"]
    # Imported here because it takes a second; see `command`.
    import jax

    from rag_jax.runtime import hosts

    command.keep_programs()
    if coordinator is not None:
        hosts.connect(coordinator, options["processes"], options["process"])
    try:
        with executors.open_executor(options["workers"]) as executor:
            given = {"seeds": options["seeds"] or 1, "overwrite": options["overwrite"]}
            room = open_room(options["system"], "pipeline")
            room.run(config, options["workdir"], executor=executor, **given)
    finally:
        if coordinator is not None:
            jax.distributed.shutdown()


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
