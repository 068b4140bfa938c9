"""What searching a large exact index takes of a TPU slice, compiled without having one.

    pip install -e '.[tpu]' && python benchmarks/index_plan.py [--passages=21000000] v5e:2x4 ...

Embeddings of DPR's width, 64 questions together, for the hundred best of each.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"  # the slice is only described: nothing may look for a real one

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import NamedSharding, PartitionSpec

from rag_jax.config import MeshConfig
from rag_jax.planning.planner import Planner
from rag_jax.planning.run import find_devices
from rag_jax.retrieval.exact import count_shard_rows, find_top
from rag_jax.runtime.sharding import make_mesh

WIDTH, QUESTIONS, K = 768, 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=21_000_000)
    parser.add_argument("slices", nargs="+")
    arguments = parser.parse_args()
    print("| slice | GiB a device | of its memory | at least | set by |")
    print("| --- | --- | --- | --- | --- |")
    for topology in arguments.slices:
        devices = find_devices(topology)
        mesh = make_mesh(MeshConfig(), devices)
        planner = Planner(mesh)
        rows = count_shard_rows(arguments.passages, mesh.size)
        split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        whole = NamedSharding(mesh, PartitionSpec())
        shape = (mesh.size, WIDTH, rows)
        planner.compile(
            "search",
            jax.jit(find_top, static_argnames="k"),
            ShapeDtypeStruct(shape, jnp.float32, sharding=split),
            ShapeDtypeStruct((QUESTIONS, WIDTH), jnp.float32, sharding=whole),
            k=K,
            size=ShapeDtypeStruct((), jnp.int32, sharding=whole),
        )
        (program,) = planner.programs
        share = program.needed / planner.chip.memory
        seconds, bound = program.estimate(planner.chip)
        time = f"{1000 * seconds:.1f} ms | {bound}" if share <= 1 else "- | does not fit"
        print(f"| {topology} | {program.needed / 2**30:.2f} | {share:.0%} | {time} |", flush=True)


if __name__ == "__main__":
    main()
