"""Runs every stage of a system and ends with a table, report.json and report.html.

    python launch/train.py --config=configs/srrag.py[:preset] [--config.field=value ...]
        [--workdir=DIR] [--coordinator=HOST:PORT --processes=N --process=I | --coordinator=auto]
        [--shard=I/N] [--seeds=N] [--overwrite]

The work folder is runs/<config> unless --workdir names another. The same command again continues
where the last one stopped; with a changed setting it redoes only the stages that depend on it. A
finished run is overwritten by other data, models or training settings only with --overwrite.

On several hosts the same command runs on each host, with one work folder that all hosts see.
--coordinator is the address of process 0, or `auto` on Cloud TPU.

Work that goes through a corpus or through questions item by item (encoding a corpus, labels,
documents, adapters, answers) can be divided over N workers that share only the work folder.
--shard=I/N, with I from 0 to N - 1, makes every N-th batch of these stages; worker 0 also makes all
other stages while the others wait. Each worker can be stopped and started again by itself.

--seeds=N runs training and evaluation with N seeds, from config.seed on. The first is the work
folder's own run; further ones, in DIR/seeds/<seed>, take from it what does not depend on the seed.
DIR/seeds/report.html has means, deviations and the paired comparison over all of them.
"""

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import list_systems, open_room

OPTIONS = {
    "workdir": "the work folder",
    "coordinator": "address of the first of several processes",
    "processes": "number of processes",
    "process": "number of this process, from 0",
    "shard": "I/N: make the I-th of N parts of every divided stage",
    "seeds": "number of seeds to run",
}
SWITCHES = {"overwrite": "overwrite a finished run that has other settings"}


def main(arguments: list[str]) -> None:
    """Runs the command line's system."""
    config, options = command.read_command(arguments, OPTIONS, switches=SWITCHES)
    system = command.find_system(config, list_systems("pipeline"))
    workdir = command.find_workdir(arguments, options)
    processes, process = (command.read_count(options, name) for name in ("processes", "process"))
    coordinator, worker = options["coordinator"], command.read_worker(options["shard"])
    if coordinator is None and (processes, process) != (None, None):
        raise RagJaxError("--processes and --process need --coordinator=HOST:PORT")
    seeds = command.read_count(options, "seeds")
    if seeds == 0:
        raise RagJaxError("--seeds=0: must be at least 1")
    if seeds is not None and worker is not None:
        raise RagJaxError(
            "--seeds: is not divided by --shard; divide each seed's own run, by --config.seed=S "
            "--workdir=DIR/seeds/S, and then give --seeds alone"
        )
    if coordinator is not None and worker is not None:
        raise RagJaxError("--shard: its workers need no --coordinator; leave one of the two out")
    # Imported here because it takes a second; see `command`.
    import jax

    from rag_jax.runtime import hosts

    command.keep_programs()
    if coordinator is not None:
        hosts.connect(coordinator, processes, process)
    try:
        options = {"worker": worker, "seeds": seeds or 1, "overwrite": options["overwrite"]}
        open_room(system, "pipeline").run(config, workdir, **options)
    finally:
        if coordinator is not None:
            jax.distributed.shutdown()


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, describe=describe_config)
