"""Embeddings as float16 and int8: what is lost, what is searched, and what is saved."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rag_jax.retrieval import Index, exact
from rag_jax.retrieval.storage import STORAGES, Stored, store
from rag_jax.runtime.errors import RagJaxError

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
HALVES = st.floats(-65_504, 65_504, width=32)
SMALLEST = 2 * np.finfo(np.float32).smallest_subnormal


def matrices(elements):
    return arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=elements)


@settings(max_examples=100)
@given(embeddings=matrices(FLOATS))
def test_int8_is_off_by_half_a_step_at_most(embeddings):
    stored = store(embeddings, "int8")
    largest = np.abs(embeddings).max(axis=1, keepdims=True).astype(np.float64)
    off = np.abs(stored.read().astype(np.float64) - embeddings)
    # Rounding of the scale and of the product adds some; the smallest scales are rounded coarsely.
    assert (off <= largest / 254 * (1 + 1e-4) + 127 * SMALLEST).all()
    assert stored.values.dtype == np.int8 and stored.scales.dtype == np.float32
    assert np.isfinite(stored.read()).all()


@settings(max_examples=100)
@given(embeddings=matrices(HALVES))
def test_float16_is_off_by_half_a_step_at_most(embeddings):
    off = np.abs(store(embeddings, "float16").read() - embeddings)
    assert (off <= np.maximum(np.abs(embeddings) / 2048, 3e-8)).all()


@pytest.mark.parametrize("kind", STORAGES)
@settings(max_examples=8)
@given(data=st.data(), size=st.sampled_from([1, 7, 40]), width=st.sampled_from([1, 6]))
def test_search_against_argsort(kind, data, size, width):
    """Of the embeddings as they are kept, of which the scores are the dot products."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    k, count = data.draw(st.integers(1, size)), data.draw(st.integers(0, 5))
    embeddings = rng.standard_normal((size, width)).astype(np.float32)
    queries = rng.standard_normal((count, width)).astype(np.float32)
    index = Index.build(embeddings, backend="exact", encoder="e", storage=kind)
    scores, rows = index.search(queries, k)
    assert (index.storage, rows.shape, scores.dtype) == (kind, (count, k), np.float32)
    wanted = np.sort(queries.astype(np.float64) @ index.embeddings.T)[:, ::-1][:, :k]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    own = np.einsum("qd,qkd->qk", queries, index.embeddings[rows])
    np.testing.assert_array_equal(scores, own)
    assert {len(set(row)) for row in rows.tolist()} <= {k}


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("size", [260])
def test_equal_scores_are_in_the_order_of_the_rows(kind, size, monkeypatch):
    """In groups of rows, in blocks of rows, with padding, and among many equal rows."""
    monkeypatch.setattr(exact, "_GROUPED_FROM", 128)
    monkeypatch.setattr(exact, "_GROUP", 4)
    monkeypatch.setattr(exact, "_CONVERTED_TOGETHER", 32)
    exact._find_top.clear_cache()
    rng = np.random.default_rng(size)
    embeddings = rng.integers(-2, 0, (size, 3)).astype(np.float32)
    for queries in (rng.integers(-2, 3, (9, 3)), [[1, 1, 2]]):
        queries = np.asarray(queries, np.float32)
        index = Index.build(embeddings, backend="exact", encoder="e", storage=kind)
        for k in (1, 7, size):
            wanted = np.argsort(-queries @ index.embeddings.T, axis=1, kind="stable")[:, :k]
            if kind != "int8":  # whose dot products are rounded in another order on the device
                np.testing.assert_array_equal(index.search(queries, k)[1], wanted)
            scores = np.einsum("qd,qkd->qk", queries, index.embeddings[wanted])
            np.testing.assert_allclose(index.search(queries, k)[0], scores, rtol=1e-5, atol=1e-6)
    exact._find_top.clear_cache()


@pytest.mark.parametrize("kind", STORAGES)
def test_an_index_survives_saving_and_changes(kind, tmp_path):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((50, 8)).astype(np.float32)
    built = Index.build(embeddings[:40], backend="exact", encoder="e", storage=kind)
    built.save(tmp_path / "index")
    assert json.loads((tmp_path / "index" / "index.json").read_text())["storage"] == kind
    loaded = Index.load(tmp_path / "index", encoder="e", storage=kind)
    whole = Index.build(embeddings, backend="exact", encoder="e", storage=kind)
    for index in (built, loaded):
        changed = index.add(embeddings[40:]).remove([0, 44])
        assert changed.storage == kind
        kept = whole.stored.keep(np.delete(np.arange(50), [0, 44]))
        np.testing.assert_array_equal(changed.stored.values, kept.values)
        np.testing.assert_array_equal(changed.embeddings, kept.read())
        for ours, theirs in zip(
            index.search(embeddings, 9), built.search(embeddings, 9), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_bytes_of_a_passage():
    embeddings = np.zeros((64, 96), np.float32)
    for kind, wanted in {"float32": 384, "float16": 192, "int8": 100}.items():
        index = Index.build(embeddings, backend="exact", encoder="e", storage=kind)
        kept = [index.stored.values, index.stored.scales]
        placed = index.searcher if kind == "int8" else [index.searcher]
        for arrays_ in (kept, placed):
            assert sum(a.nbytes for a in arrays_ if a is not None) == 64 * wanted


def test_an_index_without_the_field_is_read(tmp_path):
    """As versions before the field wrote it."""
    Index.build(np.eye(4), backend="exact", encoder="e").save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    manifest = json.loads(path.read_text())
    del manifest["storage"]
    path.write_text(json.dumps(manifest))
    assert Index.load(tmp_path / "index", encoder="e", storage="float32").storage == "float32"


def save_as(folder, kind, **changes):
    Index.build(np.eye(4), backend="exact", encoder="e", storage=kind).save(folder)
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_another_storage_than_asked_is_refused(tmp_path):
    folder = save_as(tmp_path / "index", "int8")
    message = "was built with storage 'int8', not 'float32': build the index again"
    with pytest.raises(RagJaxError, match=message):
        Index.load(folder, encoder="e", storage="float32")
    for storage, message in {
        "float16": "dataset.npy holds int8, not float16: build the index again",
        "int4": "has the storage 'int4', which this version does not read: build the index again",
        (): r"has the storage \[\], which this version does not read",
    }.items():
        save_as(folder, "int8", storage=storage)
        with pytest.raises(RagJaxError, match=message):
            Index.load(folder, encoder="e")
    save_as(folder, "int8")
    (folder / "scales.npy").unlink()
    with pytest.raises(RagJaxError, match=r"scales\.npy is missing: build the index again"):
        Index.load(folder, encoder="e")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "int4"}, "storage 'int4' is unknown: choose from"),
        ({"storage": "int8", "backend": "scann"}, "storage 'int8' is not for the backend 'scann'"),
        ({"storage": "float16"}, "row 1 has a number beyond float16's largest, 65,504: use the"),
    ],
)
def test_bad_storages(options, message):
    embeddings = np.asarray([[1, 2], [3, 7e4]], np.float32)
    with pytest.raises(RagJaxError, match=message) as error:
        Index.build(embeddings, **{"backend": "exact", "encoder": "e", **options})
    assert "\n" not in str(error.value)


def test_rows_of_zeros_and_of_the_smallest_numbers():
    stored = store(np.asarray([[0, 0], [1e-45, 0], [-3e38, 3e38]], np.float32), "int8")
    np.testing.assert_allclose(stored.take(np.asarray([0, 2, 1])), stored.read()[[0, 2, 1]])
    np.testing.assert_allclose(stored.read(), [[0, 0], [0, 0], [-3e38, 3e38]], rtol=1e-6)
    assert isinstance(stored, Stored)
