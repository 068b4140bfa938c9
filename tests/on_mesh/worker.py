"""One of several processes that train the tiny decoder together; run by tests/test_hosts.py."""

import sys

import jax
import numpy as np
from on_mesh.cases import GREEDY, make_parts, make_session, write

from rag_jax.config import MeshConfig
from rag_jax.pipeline.runner import Stage, run_stages
from rag_jax.runtime import hosts
from rag_jax.runtime.checkpoint import Checkpoints, load_tree, save_tree
from rag_jax.runtime.files import write_json
from rag_jax.runtime.sharding import make_mesh, shard_batch, shard_over_devices, shardings_of
from rag_jax.systems.srrag import tune
from rag_jax.training.loop import init_state, make_optimizer, make_step, train

STEPS = 3


def run(workdir, mesh=None):
    """Trains and writes texts as stages of a run; gives the stages' records."""
    stages = [
        Stage("train", lambda context: run_training(context, mesh)),
        Stage("texts", lambda context: write_texts(context, mesh), needs=("train",)),
    ]
    return run_stages(stages, workdir)


def run_training(context, mesh):
    session = make_session(mesh, "lora")
    start = tune.start_trainable(session)
    optimizer = make_optimizer(session.config.stage1, STEPS)
    step = make_step(tune.make_losses(session), optimizer)

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


def write_texts(context, mesh):
    texts = write(mesh, **GREEDY)
    context.map_batches(
        "texts.jsonl", texts, lambda some: [{"text": t} for t in some], batch_size=4, unit="texts"
    )
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    made = context.map_arrays(
        "rows.npy",
        7,
        lambda some: hosts.fetch(shard_over_devices(rows[some])),
        batch_size=4,
        unit="rows",
    )
    np.testing.assert_array_equal(made, rows)


if __name__ == "__main__":
    address, number, folder = sys.argv[1:]
    hosts.connect(address, 2, int(number))
    mesh = make_mesh(MeshConfig(data=2, model=2))
    with jax.set_mesh(mesh):
        for again in (False, True):
            records = run(folder, mesh)
            assert [record["reused"] for record in records] == [again, again]
    write_json(f"{folder}/process{number}.json", {"first": hosts.is_first()})
    jax.distributed.shutdown()
