"""Checkpoints: what comes back, and what happens to damaged ones."""

import errno
import os
import threading
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rag_jax.pipeline.runner import run_stages
from rag_jax.runtime import checkpoint
from rag_jax.runtime.checkpoint import Checkpoints, load_tree, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.training.loop import TrainState


def make_state(seed):
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(seed), (5, 3))},
        "b": jnp.full((4,), 1 / 3, jnp.bfloat16),
        "empty": {},
    }
    return TrainState(jnp.int32(seed), params, optax.adamw(1e-3).init(params))


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for left, right in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_a_tree_comes_back_to_the_bit(tmp_path):
    state = make_state(1)
    save_tree(tmp_path / "params", state)
    assert_same(load_tree(tmp_path / "params", jax.eval_shape(lambda: state)), state)
    save_tree(tmp_path / "params", make_state(2))
    assert_same(load_tree(tmp_path / "params", state), make_state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["params"]


def test_the_newest_two_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "steps")
    assert checkpoints.restore_latest(make_state(0)) is None
    with checkpoints:
        for step in (1, 2, 10):
            checkpoints.save(step, make_state(step))
    assert checkpoints.steps() == [2, 10]
    step, state = checkpoints.restore_latest(make_state(0))
    assert step == 10
    assert_same(state, make_state(10))
    checkpoints.remove()
    assert checkpoints.restore_latest(make_state(0)) is None


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied", "removed"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, capsys, how):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, make_state(step))
    files = [path for path in (tmp_path / "4" / "tree").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    if how == "removed":
        largest.unlink()
    else:
        middle = len(data) // 2
        altered = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        largest.write_bytes({"truncated": data[:middle], "altered": altered, "emptied": b""}[how])
    with pytest.raises(RagJaxError, match="missing, cut short or altered"):
        load_tree(tmp_path / "4", make_state(0))
    step, state = checkpoints.restore_latest(make_state(0))
    assert step == 3
    assert_same(state, make_state(3))
    warning = capsys.readouterr().err
    assert "missing, cut short or altered; going back to the checkpoint before it" in warning
    assert warning.count("\n") == 1
    assert checkpoints.steps() == [3]


def test_a_half_written_one_is_not_taken(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(3))
    (tmp_path / "3").rename(tmp_path / ".4.partial")
    assert checkpoints.restore_latest(make_state(0)) is None
    assert list(tmp_path.iterdir()) == []
    with checkpoints:
        checkpoints.save(4, make_state(4))
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


def test_what_is_written_is_what_was_saved(tmp_path, monkeypatch):
    """Not what became of the arrays by steps that were given their memory in the meantime."""
    wrote, go_on = threading.Event(), threading.Event()
    write = checkpoint.write_json

    def hesitate(path, value):
        wrote.set()
        assert go_on.wait(60)
        write(path, value)

    monkeypatch.setattr("rag_jax.runtime.checkpoint.write_json", hesitate)
    state = jax.tree.map(jnp.asarray, make_state(1))
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = jax.block_until_ready(step(state))
        assert wrote.wait(60)
        assert checkpoints.steps() == []
        go_on.set()
    assert_same(checkpoints.restore_latest(make_state(0))[1], make_state(1))


def test_an_error_in_the_background_comes_with_the_next_save(tmp_path, monkeypatch):
    def fail(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rag_jax.runtime.checkpoint.write_json", fail)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, make_state(2))
    checkpoints.wait()  # told once
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("rag_jax.runtime.checkpoint.shutil.disk_usage", lambda _: usage(10))
    with pytest.raises(OSError, match="No space left") as caught:
        save_tree(tmp_path / "params", make_state(0))
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_while_saving_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, value):
        raise ValueError("Failed to write: Read-only file system [os_error_code='30']")

    monkeypatch.setattr("rag_jax.runtime.checkpoint.write_json", fail)
    with pytest.raises(OSError) as caught:
        save_tree(tmp_path / "params", make_state(0))
    assert caught.value.errno == errno.EROFS
    assert list(tmp_path.iterdir()) == []


NAMES = ["a b", "a=b", "a,b", "日本", "*", "a?b", "{a,b}", "a'b", 'a"b', "%2F", "a#b", "a$b", "~"]
NAMES += ["a:b", "a|b", "(a)", "a\tb", "a\nb", " a", "-a"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name_are_read_again(tmp_path, name):
    save_tree(tmp_path / name / "tree", {"x": np.arange(4.0)})
    found = load_tree(tmp_path / name / "tree", {"x": np.zeros(4)})
    np.testing.assert_array_equal(found["x"], np.arange(4.0))


@pytest.mark.parametrize("name", ["[x]", "a[0-9]", "a\\b", "\\"])
def test_names_that_cannot_be_read_again_are_refused(tmp_path, name):
    with pytest.raises(RagJaxError, match="in its name, with which checkpoints cannot be read"):
        save_tree(tmp_path / name / "tree", {"x": np.arange(4.0)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(RagJaxError, match="choose another folder with --workdir"):
        run_stages([], tmp_path / name)
    assert not list(tmp_path.iterdir())
