"""One of several processes that train together when one is told to stop; run by tests/runtime."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from rag_jax.config import MeshConfig, TrainConfig
from rag_jax.runtime import hosts
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.errors import Preempted
from rag_jax.runtime.sharding import make_mesh, shard_batch
from rag_jax.training.loop import init_state, make_optimizer, make_step, train

STEPS = 60


def run(folder, *, stop_at=None):
    """Trains; at step `stop_at` this process gets SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(TrainConfig(learning_rate=0.05), STEPS)

    def loss(params, frozen, x):
        return ((x @ params["w"]) ** 2).mean(), {}

    step = make_step({"rows": loss}, optimizer)

    def batch_at(number):
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if stop_at is not None and number > stop_at:
            time.sleep(0.1)  # the processes agree beside the steps, of which these are tiny
        x = np.random.default_rng(number).normal(size=(4, 3)).astype(np.float32)
        return [("rows", shard_batch(x))], [str(number)]

    state = train(
        init_state({"w": jnp.ones((3, 2))}, optimizer),
        lambda state, parts: step(state, None, parts),
        batch_at,
        total_steps=STEPS,
        checkpoints=Checkpoints(folder / "checkpoints"),
        checkpoint_every=1000,
        progress=lambda *_, **__: contextlib.nullcontext(tqdm(disable=True)),
        log_path=folder / "log.jsonl",
        flops_at=lambda number: 0.0,
    )
    return hosts.fetch(state.params)["w"]


if __name__ == "__main__":
    address, number, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    hosts.connect(address, 2, number)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, model=1))):
        checkpoints = Checkpoints(folder / "stopped" / "checkpoints")
        if saved := checkpoints.steps():
            found = run(folder / "stopped")
            np.testing.assert_array_equal(found, run(folder / "straight"))
            print(f"went on from {saved}")
        else:
            try:
                run(folder / "stopped", stop_at=5 if number == 1 else None)
            except Preempted:
                print(f"stopped after {checkpoints.steps()}")
    jax.distributed.shutdown()
