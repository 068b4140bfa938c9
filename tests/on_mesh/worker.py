"""One of several processes that train the tiny decoder together; run by tests/runtime."""

import os
import sys
import traceback

import jax
import numpy as np
import pytest
from on_mesh.common import GREEDY, fit_rows, write
from on_mesh.system_cases import make_parts, make_session

from rag_jax.config import MeshConfig
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime import hosts
from rag_jax.runtime.checkpoint import Checkpoints, load_tree, save_tree
from rag_jax.runtime.files import write_json
from rag_jax.runtime.sharding import make_mesh, shard_batch, shard_over_devices, shardings_of
from rag_jax.training.loop import init_state, make_optimizer, make_step, train

STEPS = 3


def run(workdir, mesh=None):
    """Trains and writes texts as stages of a run; gives the stages' records."""
    stages = [
        Stage("train", lambda context: run_training(context, mesh)),
        Stage("fit", lambda context: run_fit(context, mesh)),
        Stage("texts", lambda context: write_texts(context, mesh), needs=("train",)),
    ]
    return run_stages(stages, workdir)


def run_training(context, mesh):
    """SR-RAG's training."""
    session = make_session(mesh, "lora")
    start = session.trainable.start()
    optimizer = make_optimizer(session.config.stage1, STEPS)
    step = make_step(session.losses, optimizer)

    def batch_at(number):
        return [(name, shard_batch(x)) for name, x in make_parts(number)], [f"q{number}"]

    state = train(
        init_state(start, optimizer),
        lambda state, parts: step(state, session.base.params, parts),
        batch_at,
        total_steps=STEPS,
        checkpoints=Checkpoints(context.folder / "checkpoints"),
        checkpoint_every=2,
        progress=context.progress,
        log_path=context.folder / "log.jsonl",
        flops_at=lambda step: 0.0,
    )
    # The checkpoint goes back to where its arrays lay.
    found, saved = Checkpoints(context.folder / "checkpoints").restore_latest(state)
    assert found == 2 and shardings_of(saved) == shardings_of(state)
    save_tree(context.folder / "params", state.params)
    read = load_tree(context.folder / "params", state.params)
    jax.tree.map(np.testing.assert_array_equal, hosts.fetch(read), hosts.fetch(state.params))


def run_fit(context, mesh):
    """The driver's training, from a checkpoint that an interrupted call left."""
    with pytest.raises(KeyboardInterrupt):
        fit_rows(context.folder, mesh, stop=3, progress=context.progress)
    fit_rows(context.folder, mesh, progress=context.progress)
    assert not (context.folder / "checkpoints").exists()


def write_texts(context, mesh):
    texts = write(mesh, **GREEDY)
    sizes = {"batch_size": 4, "unit": "texts"}
    records = [{"text": text} for text in texts]
    made = context.map("texts.jsonl", texts, lambda part: [{"text": t} for t in part], **sizes)
    assert made == records
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    made = context.map("rows.npy", rows, spread, **sizes)
    np.testing.assert_array_equal(made, rows)
    made = context.map("arrays.npz", rows, lambda part: {"a": spread(part), "b": part > 5}, **sizes)
    np.testing.assert_array_equal(made["a"], rows)
    np.testing.assert_array_equal(made["b"], rows > 5)


def spread(rows):
    """Rows that have been on the devices of all processes."""
    return hosts.fetch(shard_over_devices(rows))


if __name__ == "__main__":
    address, number, folder = sys.argv[1:]
    hosts.connect(address, 2, int(number))
    mesh = make_mesh(MeshConfig(data=2, model=2))
    try:
        with jax.set_mesh(mesh):
            for again in (False, True):
                records = run(folder, mesh)
                assert [record["reused"] for record in records] == [again] * 3
        write_json(f"{folder}/process{number}.json", {"first": hosts.is_first()})
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at its end it would wait for the other process, which may wait for this one
    jax.distributed.shutdown()
