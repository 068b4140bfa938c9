"""What the gradients of one microbatch of a 7B model take of a TPU slice, compiled without one.

    pip install -e '.[tpu]' && python benchmarks/step_plan.py [NAME ...]

Without names all `CASES` are compiled, one after the other, and each is written to
`benchmarks/results/plans/steps.json` when it is done. A row has 1,024 or 2,048 tokens of one text,
half of them targets; activations are bfloat16 and computed again in the backward pass.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # the slice is only described: nothing may look for a real one

import jax
import jax.numpy as jnp

from rag_jax.config import MeshConfig, TrainConfig, TuningConfig
from rag_jax.models.io.architectures import get_rules
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.planning.abstract import describe_model, split_rows
from rag_jax.planning.planner import Planner, Program
from rag_jax.planning.run import find_devices
from rag_jax.runtime.sharding import keep_over_data, make_mesh, shardings_of
from rag_jax.systems.self_retrieval.data import TERMS
from rag_jax.systems.self_retrieval.loss import make_loss
from rag_jax.training.loop import abstract_state, compute_gradients, make_optimizer
from rag_jax.training.rows import pack_rows
from rag_jax.training.trainable import make_trainable, set_passes

RESULTS = Path(__file__).parent / "results" / "plans" / "steps.json"
LLAMA_2, LLAMA_3 = "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B-Instruct"


class Case(NamedTuple):
    """A training step to plan.

    Attributes:
        model: devices that share each row and each weight of a frozen model.
        rows: of the microbatch, over all devices.
        scans: whether it loops over the layers, which copies the weights once.
    """

    name: str
    slice: str
    model: int
    mode: str
    rows: int
    width: int = 2048
    int8: bool = False
    scans: bool = True


CASES = {
    "lora-v5e-2x4": Case(LLAMA_2, "v5e:2x4", 4, "lora", 2),
    "full-v5e-2x4": Case(LLAMA_2, "v5e:2x4", 4, "full", 2),
    "lora-v5e-8x8": Case(LLAMA_2, "v5e:8x8", 4, "lora", 16),
    "full-v5e-8x8": Case(LLAMA_2, "v5e:8x8", 4, "full", 16),
    "lora-v5p-2x2x2": Case(LLAMA_2, "v5p:2x2x2", 4, "lora", 2),
    "full-v5p-2x2x2": Case(LLAMA_2, "v5p:2x2x2", 4, "full", 2),
    "int8-v5e-1x1-1": Case(LLAMA_3, "v5e:1x1", 1, "lora", 1, 1024, True, False),
    "int8-v5e-1x1-4": Case(LLAMA_3, "v5e:1x1", 1, "lora", 4, 1024, True, False),
    "int8-v5e-2x2-4": Case(LLAMA_3, "v5e:2x2", 4, "lora", 4, 1024, True),
    "int8-v5e-2x2-16": Case(LLAMA_3, "v5e:2x2", 4, "lora", 16, 1024, True),
    "bfloat16-v5e-2x2-4": Case(LLAMA_3, "v5e:2x2", 4, "lora", 4, 1024),
}


def main() -> None:
    """Plans the cases that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    for name in parser.parse_args().names or CASES:
        record = plan(CASES[name])
        found = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**found, name: record}, indent=1) + "\n", encoding="utf-8")
        print(name, record, flush=True)


def plan(case: Case) -> dict[str, Any]:
    """Compiles the gradients of a case's microbatch, with the optimiser's state in memory."""
    mesh = make_mesh(MeshConfig(model=case.model), find_devices(case.slice))
    config = find_sizes(case.name)
    options = {"dtype": jnp.bfloat16, "int8": case.int8, "rules": keep_over_data(get_rules(config))}
    lm = describe_model(config, mesh, **options)
    tuning = TuningConfig(mode=case.mode, remat="full", scan_layers=case.scans)
    rules = {"rules": get_rules(config), "mesh": mesh}
    trainable = make_trainable(tuning, lm.params, **rules, seed=0, dtype=jnp.bfloat16)
    loss = make_loss(set_passes(lm.model, tuning), trainable)
    sizes = {"width": case.width, "targets": case.width // 2, "batch": case.rows}
    arrays = pack_rows([], terms=TERMS, **sizes, scale=1.0, reduction="mean")
    params = trainable.abstract()
    state = abstract_state(params, make_optimizer(TrainConfig(), 1))
    planner = Planner(mesh)
    # The model before the training stays, for the stages after it.
    planner.hold(lm.params, state)
    inputs = loss, state.params, trainable.frozen, split_rows(arrays, mesh)
    with jax.set_mesh(mesh):
        planner.compile("gradients", compute_gradients, *inputs, shardings=shardings_of(params))
    (program,) = planner.programs
    return describe(case, config, program, planner)


def describe(
    case: Case, config: DecoderConfig, program: Program, planner: Planner
) -> dict[str, Any]:
    """A case's numbers: bytes of a device, and the shares of its peak that are possible."""
    chip, cost = planner.chip, program.cost
    seconds, bound = program.estimate(chip)
    fits = program.needed <= chip.memory
    tokens = case.rows * case.width
    forward = config.count_flops(tokens, tokens // 2) + config.slot_flops * tokens * case.width / 2
    # The gradients of a frozen weight are left out, those of what it was multiplied by are not.
    useful = forward * (3 if case.mode == "full" else 2)
    return case._asdict() | {
        "devices": planner.mesh.size,
        "memory": chip.memory,
        "arguments": program.arguments,
        "temporaries": program.temporaries,
        "resident": program.resident,
        "fits": fits,
        "flops": cost.flops,
        "moved": cost.moved,
        "sent": sum(cost.sent.values()),
        "counts": cost.counts,
        "overlapped": cost.overlapped,
        "seconds": seconds if fits else None,
        "bound": bound if fits else "does not fit",
        "roofline": cost.flops / chip.flops / seconds if fits else None,
        "mfu": useful / planner.mesh.size / chip.flops / seconds if fits else None,
        "compile_seconds": program.seconds,
    }


if __name__ == "__main__":
    main()
