"""Plans a run on a slice of TPUs without having the slice: its batches, its programs, their cost.

    python launch/plan.py --config=configs/srrag.py:llama2-7b --topology=v5e:8x8 [--batches]
        [--only=TEXT] [--questions=N] [--passages=N] [--lengths=FILE] [--config.field=value ...]

First the batches are drawn: examples by the lengths of a corpus's texts, as many as the run's data
have (or --questions to train on and to evaluate, and --passages). From these follow the programs of
every training, how often each runs, and the share of the computed tokens that is no padding. With
--batches that is all, takes seconds and needs no compiler; without --topology it is for one CPU.
--lengths is a file as benchmarks/lengths.py writes it.

Without --batches every program is compiled, for which `pip install -e '.[tpu]'` is needed. --only
plans the programs with a text in their names: a program of a 7B model takes from seconds to six
minutes. Memory and FLOPs are those of one device. The column "at least" is a lower bound of the
program's seconds, and "set by" is computing, memory or links, whichever sets the bound. The exit
status is 1 if a program does not fit; settings with which it fits are then searched for.
"""

import os
from typing import Any

from rag_jax.commands.describe import describe_config
from rag_jax.pipeline import command
from rag_jax.runtime import signals
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text
from rag_jax.systems import list_systems, open_room

OPTIONS = {
    "topology": "the slice, such as v5e:8x8",
    "only": "part of a program's name",
    "lengths": "a file of lengths of texts",
    "questions": "number of questions that are trained on, and of those that are evaluated",
    "passages": "number of passages",
}
SWITCHES = {"batches": "whether to draw the batches and compile nothing"}


@signals.leave_within(signals.PATIENCE)
def main(arguments: list[str]) -> None:
    """Plans the command line's run."""
    config, options = command.read_command(arguments, OPTIONS, switches=SWITCHES)
    system = command.find_system(config, list_systems("batches" if options["batches"] else "plan"))
    numbers = {name: command.read_count(options, name) for name in ("questions", "passages")}
    file = command.read_path(options, "lengths")
    if options["topology"] is None and not options["batches"]:
        raise RagJaxError("--topology is missing: write CHIP:AxB, such as --topology=v5e:8x8")
    if options["batches"] and options["only"] is not None:
        raise RagJaxError("--only and --batches: with batches nothing is compiled; leave one out")
    # The slice is only described: JAX must not look for a real one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rag_jax.config import build
    from rag_jax.planning import drawing, lengths
    from rag_jax.planning.batches import Drawn
    from rag_jax.planning.corpus import count_corpus
    from rag_jax.planning.run import plan_run
    from rag_jax.planning.slices import read_slice
    from rag_jax.planning.stages import format_host

    settings = build(open_room(system, "pipeline").CONFIG, config)
    slice, batches = read_slice(options["topology"]), open_room(system, "batches")
    slice.make_mesh(settings.mesh)
    read = lengths.read_lengths(file or lengths.DEFAULT)
    corpus = count_corpus(settings, read, batches.list_counts(settings), **numbers)
    sizes = open_room(system, "session").Session.batch_sizes

    def draw(settings: Any) -> Drawn:
        return drawing.draw_run(batches, settings, sizes, slice, corpus)

    if options["batches"]:
        stages = draw(settings).stages.values()
        write_text(f"{drawing.describe_run(settings, slice, corpus)}\n")
        write_text(drawing.format_batches(stages))
    else:
        only = options["only"] or ""
        plan_run(open_room(system, "plan"), settings, options["topology"], draw, only=only)
    if work := list(batches.list_host(settings, corpus)):
        write_text(f"\n{format_host(work)}")


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, resumes=False, describe=describe_config)
