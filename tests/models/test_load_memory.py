"""A model larger than its files goes into its shards without the host ever holding much of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag_jax.models.io.configs import read_config
from rag_jax.models.io.weights import list_slots

GOLDEN = Path(__file__).parents[1] / "golden" / "llama_untied_sharded"
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 2048,
}

# Prints the host's memory beside the parameters, at its peak, and the parameters' own, in bytes.
# Simulated devices keep theirs on the host too.
MEASURE = """
import sys
import jax
from rag_jax.config import MeshConfig
from rag_jax.models import load
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.sharding import make_mesh

def read(field):
    line = next(l for l in open("/proc/self/status") if l.startswith(field))
    return int(line.split()[1]) * 1024

mesh = make_mesh(MeshConfig(data=4, model=2))
jax.numpy.zeros(1).block_until_ready()
load(sys.argv[2], mesh=mesh)  # what is imported and cached at a first load is no part of it
before = read("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
params = load(sys.argv[1], mesh=mesh).params
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(read("VmHWM") - before - size, size, count_bytes_per_device(params))
"""


def write_shards(folder, count):
    """A random model whose layers are dealt into so many files."""
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((GOLDEN / "config.json").read_text()) | SIZES
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    files = [{} for _ in range(count)]
    slots = list_slots(read_config(folder / "config.json"))
    for number, slot in enumerate(slots):
        shape = slot.shape[::-1] if slot.transposed else slot.shape
        array = rng.standard_normal(shape, np.float32)
        files[number * count // len(slots)][slot.name] = array
    names = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name)
    where = {key: name for name, part in zip(names, files, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return max((folder / name).stat().st_size for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_beside_the_shards(tmp_path):
    largest = write_shards(tmp_path / "model", 4)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "model", GOLDEN],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    beside, size, on_one = map(int, done.stdout.split())
    assert size > 3 * largest
    assert beside < 1.5 * largest
    assert on_one < size / 7.5
