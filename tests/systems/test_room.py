"""Estimates of what a stage writes, against what is written."""

import shutil

import numpy as np
import pytest

from rag_jax.config import TuningConfig
from rag_jax.models import load
from rag_jax.models.io.load import load_config
from rag_jax.pipeline.room import measure_folder
from rag_jax.runtime import checkpoint
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.systems.room import (
    encoder_room,
    index_room,
    list_trained,
    train_room,
    weigh_arrays,
    weigh_params,
)
from rag_jax.training.trainable import init_trained


def test_checkpoints_take_their_room_while_a_newer_one_is_written(tmp_path, monkeypatch):
    state = {name: np.ones(40_000, np.float32) for name in ("params", "mu", "nu")}
    sizes, remove = [], shutil.rmtree

    def measure_and_remove(folder, **options):
        sizes.append(measure_folder(tmp_path))
        remove(folder, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", measure_and_remove)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state)
    keeps, passing = train_room(weigh_arrays([(40_000,)]))
    assert 40_000 * 4 < keeps < 1.1 * 40_000 * 4
    assert max(sizes) <= passing <= 1.1 * max(sizes)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_shapes_of_what_is_trained(llama_folder, mode):
    tuning, loaded = TuningConfig(mode=mode, rank=3), load(llama_folder)
    trained = init_trained(tuning, loaded.params, seed=0)
    leaves = [leaf.shape for leaf in _list_leaves(trained)]
    assert sorted(leaves) == sorted(list_trained(tuning, load_config(llama_folder)))


def test_in_closed_form(bert_folder):
    size = weigh_params(load_config(bert_folder))
    kept = train_room(size)[0]
    assert encoder_room(bert_folder) == (kept, 9 * size)
    assert encoder_room(bert_folder, sides=2, shared=False) == (kept + size, 18 * size)
    assert encoder_room(bert_folder, validated=True) == (kept, 11 * size)
    tree = index_room(bert_folder, 0)[0]
    assert index_room(bert_folder, 100) == (2 * 100 * 16 * 4 + tree, 0)
    assert index_room(bert_folder, 100, indexed=30) == (130 * 16 * 4 + tree, 0)


def _list_leaves(tree):
    for value in tree.values():
        yield from _list_leaves(value) if isinstance(value, dict) else [value]


def test_a_file_that_another_worker_removed_is_not_counted(tmp_path, monkeypatch):
    (tmp_path / "here").write_bytes(b"123")
    walked = [(str(tmp_path), [], ["gone", "here"])]
    monkeypatch.setattr("rag_jax.pipeline.room.os.walk", lambda folder: walked)
    assert measure_folder(tmp_path) == 3
