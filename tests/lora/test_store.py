"""The store of adapters: what comes back, one at a time, and what is refused or lost."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder

from rag_jax import lora
from rag_jax.lora.store import AdapterStore
from rag_jax.runtime.errors import RagJaxError

PARAMS = make_decoder()[1]
INIT = partial(lora.init_bank, jax.random.key(0), PARAMS, targets=".*ffn/.*/kernel")
# Ids are any text, and never paths.
IDS = ["a", "../../b", "", "c/d\0\n", "wiki:Zürich \ud800", "A"]
SETTINGS = {"rank": 2, "alpha": 32.0, "epochs": 1}


def make_bank(size, seed=0, rank=2):
    rng = np.random.default_rng(seed)
    bank = INIT(rank=rank, size=size)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), bank)


def take(bank, rows):
    return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], bank)


def open_store(folder, *, rank=2, base="f00d", dtype=jnp.float32, **settings):
    template = jax.eval_shape(lambda: take(INIT(rank=rank, size=1), 0))
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), template)
    return AdapterStore(folder, template, base=base, settings={**SETTINGS, **settings})


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def find_checkpoint(store, passage):
    return store._place(passage)


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    bank = make_bank(len(IDS))
    store = open_store(tmp_path / "store")
    assert not any(passage in store for passage in IDS)
    store.save(IDS[:4], take(bank, range(4)))
    store.save(IDS[4:], take(bank, [4, 5]))  # grows
    again = open_store(tmp_path / "store")
    assert all(passage in again for passage in IDS)
    for rows in ([3], [5, 0, 0, 2], []):
        found, lost = again.load([IDS[row] for row in rows])
        assert_same(found, take(bank, np.asarray(rows, int)))
        assert lost == {}
    assert {path.name for path in tmp_path.iterdir()} == {"store"}
    again.save(["a"], take(bank, [5]))  # takes the place of the first
    assert_same(again.load(["a", "../../b"])[0], take(bank, [5, 1]))


def test_banks_are_filled_up_to_a_size(tmp_path):
    bank = make_bank(2)
    store = open_store(tmp_path)
    store.save(IDS[:2], bank)
    found, lost = store.load(IDS[:2], rows=5)
    assert_same(take(found, [0, 1]), bank)
    assert lost == {} and not any(leaf[2:].any() for leaf in jax.tree.leaves(found))
    assert all(len(leaf) == 5 for leaf in jax.tree.leaves(found))


def test_bytes_on_disk(tmp_path):
    store = open_store(tmp_path)
    store.save(IDS[:1], make_bank(1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(make_bank(1)))
    assert size <= store.count_bytes(IDS[0]) < size + 20_000
    assert store.count_bytes(IDS[1]) == 0


def test_one_is_read_without_the_others(tmp_path):
    bank = make_bank(3)
    store = open_store(tmp_path)
    store.save(IDS[:3], bank)
    for passage in IDS[1:3]:
        for path in find_checkpoint(store, passage).rglob("*"):
            if path.is_file():
                path.unlink()
    assert_same(store.load(IDS[:1])[0], take(bank, [0]))


@pytest.mark.parametrize("how", ["truncated", "altered", "removed", "absent"])
def test_lost_ones_are_named_and_the_rest_still_load(tmp_path, how):
    bank = make_bank(3)
    store = open_store(tmp_path)
    present = [0, 2] if how == "absent" else [0, 1, 2]
    store.save([IDS[row] for row in present], take(bank, present))
    if how != "absent":
        files = [path for path in find_checkpoint(store, IDS[1]).rglob("*") if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        data = largest.read_bytes()
        if how == "removed":
            largest.unlink()
        else:
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            largest.write_bytes(data[:middle] if how == "truncated" else flipped)
    found, lost = store.load(IDS[:3])
    assert_same(take(found, [0, 2]), take(bank, [0, 2]))
    assert not any(leaf[1].any() for leaf in jax.tree.leaves(found))
    assert list(lost) == [IDS[1]]
    expected = "has no adapter in" if how == "absent" else "missing, cut short or altered"
    assert f"passage {IDS[1]!r}" in lost[IDS[1]] and expected in lost[IDS[1]]


def test_adapters_of_another_kind_are_refused(tmp_path):
    open_store(tmp_path).save(IDS[:1], make_bank(1))
    for changes, message in (
        ({"base": "beef"}, "another base: choose another folder"),
        ({"epochs": 2, "seed": 3}, r"another settings \(epochs, seed\)"),
        ({"rank": 3}, "another shapes"),
        ({"dtype": jnp.bfloat16}, "another dtype"),
    ):
        with pytest.raises(RagJaxError, match=f"holds adapters of {message}"):
            open_store(tmp_path, **changes)
    assert open_store(tmp_path).load(IDS[:1])[1] == {}


def test_a_bank_of_another_kind_is_not_saved(tmp_path):
    store = open_store(tmp_path)
    for bank in (make_bank(2), make_bank(1, rank=3)):
        with pytest.raises(ValueError, match="bank: not 1 adapters of the store's kind"):
            store.save(IDS[:1], bank)
    assert IDS[0] not in store


def test_folders_that_are_no_store(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(RagJaxError, match="is no store of adapters"):
        open_store(tmp_path)
    open_store(tmp_path / "store")
    for text in ("{", "3", json.dumps([1])):
        (tmp_path / "store" / "adapters.json").write_text(text)
        with pytest.raises(RagJaxError, match="adapters.json is damaged"):
            open_store(tmp_path / "store")


def test_bfloat16_takes_half_the_room(tmp_path):
    bank = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), make_bank(1))
    store = open_store(tmp_path, dtype=jnp.bfloat16)
    store.save(["a"], bank)
    assert_same(store.load(["a"])[0], bank)


def test_an_adapter_with_nan_is_lost(tmp_path):
    store = open_store(tmp_path / "store")
    store.save(IDS[:2], jax.tree.map(lambda leaf: leaf.at[1].set(np.nan), make_bank(2)))
    bank, lost = store.load(IDS[:2])
    assert list(lost) == [IDS[1]] and "its adapter is lost: " in lost[IDS[1]]
    assert "has a NaN" in lost[IDS[1]]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bank))
