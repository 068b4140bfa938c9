"""Searching, saving and loading an index, and everything that can be wrong with either."""

import errno
import json
import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data.passages import Passage
from rag_jax.retrieval import Index, exact, fingerprint_corpus, scann_index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import replace_folder
from rag_jax.runtime.manifest import hash_file

HAS_SCANN = True
try:
    import scann  # noqa: F401
except ImportError:
    HAS_SCANN = False
needs_scann = pytest.mark.skipif(not HAS_SCANN, reason="ScaNN has no build for this platform")
backends = pytest.mark.parametrize("backend", ["exact", pytest.param("scann", marks=needs_scann)])


def make_vectors(rows, width, *, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_clusters(rows, width, *, seed=0):
    """Vectors around 50 centres, as passages on the same topic are."""
    rng = np.random.default_rng(seed)
    centres = make_vectors(50, width, seed=99)[rng.integers(50, size=rows)]
    vectors = (centres + 0.1 * rng.standard_normal((rows, width))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search_slowly(embeddings, queries, k):
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@backends
@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 40), width=st.integers(1, 9))
def test_search_against_argsort(backend, data, size, width):
    k = data.draw(st.integers(1, size))
    count = data.draw(st.integers(0, 5))
    embeddings, queries = make_vectors(size, width), make_vectors(count, width, seed=1)
    index = Index.build(embeddings, backend=backend, encoder="e")
    scores, rows = index.search(queries, k)
    assert (index.size, index.width) == (size, width)
    assert scores.shape == rows.shape == (count, k)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    expected_scores, expected_rows = search_slowly(embeddings, queries, k)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    # Below width 2 all scores are 1 or -1, and which of the equal rows come is left open.
    if width > 1:
        np.testing.assert_array_equal(rows, expected_rows)
    for row in rows:
        assert len(set(row.tolist())) == k


@backends
def test_lists_and_float64_are_taken(backend):
    index = Index.build([[1.0, 0.0], [0.0, 2.0]], backend=backend, encoder="e")
    scores, rows = index.search(np.array([[1.0, 1.0]]), 2)
    np.testing.assert_array_equal(rows, [[1, 0]])
    np.testing.assert_array_equal(scores, [[2, 1]])


@backends
def test_equal_scores_come_in_row_order(backend):
    embeddings = np.repeat(make_vectors(3, 8), 4, axis=0)
    index = Index.build(embeddings, backend=backend, encoder="e")
    rows = index.search(embeddings[:1], 4)[1]
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]])


@needs_scann
def test_backends_give_the_same_scores_to_the_bit():
    embeddings, queries = make_vectors(500, 32), make_vectors(70, 32, seed=1)
    exact = Index.build(embeddings, backend="exact", encoder="e")
    approximate = Index.build(embeddings, backend="scann", encoder="e")
    for ours, theirs in zip(
        exact.search(queries, 10), approximate.search(queries, 10), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # Nor does a score depend on k or on the queries beside it.
    alone = [exact.search(queries[i : i + 1], 3)[0] for i in range(9)]
    np.testing.assert_array_equal(np.concatenate(alone), exact.search(queries[:9], 10)[0][:, :3])


def test_exact_search_compiles_once_per_bucket():
    index = Index.build(make_vectors(33, 7), backend="exact", encoder="e")
    queries = make_vectors(200, 7, seed=1)
    jax.clear_caches()
    index.search(queries[:130], 5)  # 64 + 64 + 8
    index.search(queries[:1], 5)
    compiled = exact._find_top._cache_size()
    for count, k in [(1, 8), (3, 6), (64, 7), (129, 5), (200, 5)]:
        index.search(queries[:count], k)
    assert exact._find_top._cache_size() == compiled == 3


@pytest.fixture
def small_thresholds(monkeypatch):
    """Lets small corpora use the settings meant for large ones."""

    def use(hash_from, partition_from):
        monkeypatch.setattr(scann_index, "_HASH_FROM", hash_from)
        monkeypatch.setattr(scann_index, "_PARTITION_FROM", partition_from)

    return use


@needs_scann
@pytest.mark.parametrize("partition_from", [10_000, 1_000], ids=["hashing", "partitions"])
def test_scann_recall(small_thresholds, partition_from):
    small_thresholds(1_000, partition_from)
    embeddings, queries = make_clusters(5_000, 32), make_clusters(100, 32, seed=1)
    index = Index.build(embeddings, backend="scann", encoder="e")
    scores, rows = index.search(queries, 10)
    expected = search_slowly(embeddings, queries, 10)[1]
    found = [len(set(a) & set(b)) for a, b in zip(rows, expected, strict=True)]
    assert np.mean(found) / 10 > 0.9
    # Whatever was found, the scores are the dot products themselves, in order.
    np.testing.assert_allclose(
        scores, np.einsum("qd,qkd->qk", queries, embeddings[rows]), atol=1e-6
    )
    assert (np.diff(scores, axis=1) <= 0).all()


@needs_scann
def test_scann_is_built_alike_from_the_same_embeddings(small_thresholds, tmp_path):
    small_thresholds(1_000, 2_000)
    embeddings, queries = make_vectors(8_000, 16), make_vectors(50, 16, seed=1)
    built = [Index.build(embeddings, backend="scann", encoder="e") for _ in range(2)]
    for index, name in zip(built, ("first", "second"), strict=True):
        index.save(tmp_path / name)
    files = saved_files(tmp_path / "first")
    assert "serialized_partitioner.pb" in files and files == saved_files(tmp_path / "second")
    hashes = [{f: hash_file(tmp_path / n / f) for f in files} for n in ("first", "second")]
    assert hashes[0] == hashes[1]
    found = [index.search(queries, 10)[1] for index in built]
    np.testing.assert_array_equal(*found)


@needs_scann
@pytest.mark.parametrize("k", [1, 150, 1_500, 2_000])
def test_scann_fills_up_beyond_the_partitions_searched(small_thresholds, k):
    small_thresholds(1_000, 1_000)
    embeddings, queries = make_clusters(2_000, 16), make_clusters(5, 16, seed=1)
    index = Index.build(embeddings, backend="scann", encoder="e")
    scores, rows = index.search(queries, k)
    assert all(len(set(row.tolist())) == k for row in rows)
    assert np.isfinite(scores).all()
    if k == 2_000:
        np.testing.assert_array_equal(rows, index_exactly(embeddings).search(queries, k)[1])


def index_exactly(embeddings):
    return Index.build(embeddings, backend="exact", encoder="e")


def saved_files(folder):
    return sorted(path.name for path in folder.iterdir())


@backends
def test_save_and_load(tmp_path, backend):
    embeddings, queries = make_vectors(300, 12), make_vectors(9, 12, seed=1)
    index = Index.build(embeddings, backend=backend, encoder="abc")
    index.save(tmp_path / "deep" / "index")
    moved = (tmp_path / "deep").rename(tmp_path / "moved") / "index"
    loaded = Index.load(moved, encoder="abc")
    assert (loaded.backend, loaded.encoder, loaded.size, loaded.width) == (backend, "abc", 300, 12)
    np.testing.assert_array_equal(loaded.embeddings, embeddings)
    for ours, theirs in zip(index.search(queries, 20), loaded.search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert saved_files(tmp_path / "moved") == ["index"]


@needs_scann
def test_large_scann_index_survives_saving(tmp_path, small_thresholds):
    small_thresholds(1_000, 1_000)
    embeddings, queries = make_clusters(3_000, 16), make_clusters(20, 16, seed=1)
    index = Index.build(embeddings, backend="scann", encoder="e")
    index.save(tmp_path / "index")
    assert "serialized_partitioner.pb" in saved_files(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", encoder="e")
    np.testing.assert_array_equal(loaded.search(queries, 10)[1], index.search(queries, 10)[1])


@backends
def test_only_known_files_are_written(tmp_path, backend):
    Index.build(make_vectors(20, 4), backend=backend, encoder="e").save(tmp_path / "index")
    ours, scanns = ["dataset.npy", "index.json"], ["scann_assets.pbtxt", "scann_config.pb"]
    assert saved_files(tmp_path / "index") == ours + (scanns if backend == "scann" else [])


def test_saving_replaces_an_older_index(tmp_path):
    index_exactly(make_vectors(20, 4)).save(tmp_path / "index")
    index_exactly(make_vectors(30, 4)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index", encoder="e").size == 30
    assert saved_files(tmp_path) == ["index"]


def test_saving_into_an_empty_folder(tmp_path):
    (tmp_path / "index").mkdir()
    index_exactly(make_vectors(20, 4)).save(tmp_path / "index")
    assert Index.load(tmp_path / "index", encoder="e").size == 20


def test_saving_spares_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RagJaxError, match="exists and is not an index: save into another folder"):
        index_exactly(make_vectors(20, 4)).save(tmp_path)
    with pytest.raises(RagJaxError, match="exists and is not an index"):
        index_exactly(make_vectors(20, 4)).save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_failed_save_keeps_the_older_index(tmp_path, monkeypatch):
    index_exactly(make_vectors(20, 4)).save(tmp_path / "index")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("rag_jax.runtime.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        index_exactly(make_vectors(30, 4)).save(tmp_path / "index")
    assert saved_files(tmp_path) == ["index"]
    assert Index.load(tmp_path / "index", encoder="e").size == 20


def test_two_that_save_at_once_leave_one_whole_index(tmp_path):
    """And no copy of the other's, whichever is last."""
    indices = [index_exactly(make_vectors(size, 4)) for size in (20, 30)]

    def save(index):
        for _ in range(40):
            index.save(tmp_path / "index")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(save, index) for index in indices]:
            done.result()
    assert saved_files(tmp_path) == ["index"]
    assert Index.load(tmp_path / "index", encoder="e").size in (20, 30)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), KeyboardInterrupt("no")])
def test_an_index_that_cannot_take_the_others_place_leaves_it_there(tmp_path, monkeypatch, error):
    index_exactly(make_vectors(20, 4)).save(tmp_path / "index")
    rename = os.rename

    def refuse(source, target):
        if target == tmp_path / "index" and not (source / "kept").exists():
            raise error
        rename(source, target)

    (tmp_path / "index" / "kept").touch()
    monkeypatch.setattr("rag_jax.runtime.files.os.rename", refuse)
    with pytest.raises(type(error), match="no"), replace_folder(tmp_path / "index"):
        pass
    assert saved_files(tmp_path) == ["index"]
    assert (tmp_path / "index" / "kept").exists()


def build_with_nan(row):
    embeddings = make_vectors(5, 3)
    embeddings[row:, 1] = np.nan
    return Index.build(embeddings, backend="exact", encoder="e")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_with_nan(3), "embeddings: row 3 has a NaN or an infinity"),
        (
            lambda: Index.build(np.array([[0.0], [1e300]]), backend="exact", encoder="e"),
            "embeddings: row 1 has a NaN or an infinity",
        ),
        (
            lambda: Index.build(np.ones((2, 2), complex), backend="exact", encoder="e"),
            "embeddings are complex128: expected real numbers",
        ),
        (
            lambda: Index.build([["1", "2"]], backend="exact", encoder="e"),
            "embeddings are no matrix of numbers: encode texts first",
        ),
        (
            lambda: Index.build(np.zeros((0, 8)), backend="scann", encoder="e"),
            r"embeddings have shape \(0, 8\): the corpus is empty",
        ),
        (
            lambda: Index.build(np.zeros((4, 0)), backend="exact", encoder="e"),
            r"embeddings have shape \(4, 0\): the corpus is empty",
        ),
        (
            lambda: Index.build(np.zeros(8), backend="exact", encoder="e"),
            r"embeddings have shape \(8,\): expected \[rows, dimensions\]",
        ),
        (
            lambda: Index.build(np.zeros((2, 2)), backend="faiss", encoder="e"),
            "index backend 'faiss' is unknown: choose from .*'exact', 'faiss_flat', .*'scann'",
        ),
    ],
)
def test_bad_embeddings(build, message):
    with pytest.raises(RagJaxError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.zeros((2, 4)), 0, "k is 0: it must be from 1 to 20"),
        (np.zeros((2, 4)), -1, "k is -1: it must be from 1 to 20"),
        (np.zeros((2, 4)), 21, "k is 21: it must be from 1 to 20, the index's size"),
        (np.zeros((2, 5)), 1, "queries have 5 dimensions, but the index has 4"),
        (np.zeros(4), 1, r"queries have shape \(4,\)"),
        (np.full((2, 4), np.inf), 1, "queries: row 0 has a NaN or an infinity"),
    ],
)
@backends
def test_bad_searches(backend, queries, k, message):
    index = Index.build(make_vectors(20, 4), backend=backend, encoder="e")
    with pytest.raises(RagJaxError, match=message) as error:
        index.search(queries, k)
    assert "\n" not in str(error.value)


def rewrite_manifest(folder, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_embeddings(folder):
    data = (folder / "dataset.npy").read_bytes()
    (folder / "dataset.npy").write_bytes(data[:-1])


def alter_embeddings(folder):
    data = bytearray((folder / "dataset.npy").read_bytes())
    data[-1] ^= 1
    (folder / "dataset.npy").write_bytes(bytes(data))


def list_pickle(folder):
    (folder / "scann_docids.pkl").write_bytes(pickle.dumps([1]))
    hashes = json.loads((folder / "index.json").read_text())["sha256"]
    rewrite_manifest(folder, sha256={**hashes, "scann_docids.pkl": "0" * 64})


DAMAGE = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "index.json is missing: build"),
    "no manifest": (lambda f: (f / "index.json").unlink(), "index.json is missing: build"),
    "no json": (lambda f: (f / "index.json").write_text("{"), "index.json is damaged"),
    "not text": (lambda f: (f / "index.json").write_bytes(b"\xff\xfe"), "index.json is damaged"),
    "a list": (lambda f: (f / "index.json").write_text("[]"), "index.json is damaged"),
    "no hashes": (lambda f: rewrite_manifest(f, sha256=None), "index.json is damaged"),
    "format": (lambda f: rewrite_manifest(f, format=9), "index.json has format 9 and backend"),
    "backend": (lambda f: rewrite_manifest(f, backend="x"), "format 2 and backend 'x', which this"),
    "size": (lambda f: rewrite_manifest(f, size=3), r"dataset.npy has shape \(20, 4\), not"),
    "missing": (lambda f: (f / "dataset.npy").unlink(), "dataset.npy is missing: build"),
    "unlisted": (lambda f: rewrite_manifest(f, sha256={}), "dataset.npy is not part of an index"),
    "cut": (cut_embeddings, "dataset.npy was altered or cut short"),
    "altered": (alter_embeddings, "dataset.npy was altered or cut short"),
    "pickle": (
        lambda f: (f / "scann_docids.pkl").write_bytes(pickle.dumps([1])),
        "scann_docids.pkl is not part of an index",
    ),
    "listed pickle": (list_pickle, "scann_docids.pkl is not part of an index"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
@backends
def test_damaged_folders(tmp_path, backend, damage, message):
    folder = tmp_path / "index"
    Index.build(make_vectors(20, 4), backend=backend, encoder="e").save(folder)
    damage(folder)
    with pytest.raises(RagJaxError, match=message) as error:
        Index.load(folder, encoder="e")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_pickled_arrays_are_refused(tmp_path):
    folder = tmp_path / "index"
    index_exactly(make_vectors(20, 4)).save(folder)
    np.save(folder / "dataset.npy", np.array([[{}]]), allow_pickle=True)
    rewrite_manifest(folder, sha256={"dataset.npy": hash_file(folder / "dataset.npy")})
    with pytest.raises(RagJaxError, match=r"dataset\.npy cannot be read: .*Python objects"):
        Index.load(folder, encoder="e")


def rewrite_file(folder, name, write):
    """Changes a file, and its hash with it: the index's author may have made it so."""
    write(folder / name)
    hashes = json.loads((folder / "index.json").read_text())["sha256"]
    rewrite_manifest(folder, sha256={**hashes, name: hash_file(folder / name)})


@pytest.mark.parametrize("dtype", ["complex64", ">f4", "f8", "U8", "i4"])
def test_embeddings_of_another_kind_are_refused(tmp_path, dtype):
    index_exactly(make_vectors(20, 4)).save(tmp_path / "index")
    array = np.load(tmp_path / "index" / "dataset.npy").astype(dtype)
    rewrite_file(tmp_path / "index", "dataset.npy", lambda path: np.save(path, array))
    with pytest.raises(RagJaxError, match=r"dataset\.npy .*holds"):
        Index.load(tmp_path / "index", encoder="e")


def edit_array(change):
    def edit(path):
        np.save(path, change(np.load(path)))

    return edit


def edit_text(old, new):
    def edit(path):
        path.write_text(path.read_text().replace(old, new))

    return edit


ELSEWHERE = {
    "outside": ("scann_assets.pbtxt", edit_text('"hashed', '"../hashed'), "names a file elsewhere"),
    "root": ("scann_assets.pbtxt", edit_text('"hashed', '"/tmp/hashed'), "names a file elsewhere"),
    "missing": ("scann_assets.pbtxt", edit_text('"hashed', '"un'), "un_dataset.npy is missing"),
    "comment": ("scann_assets.pbtxt", edit_text("assets", "# assets"), "not as ScaNN writes it"),
    "large": ("scann_assets.pbtxt", edit_text("assets", "assets" * 20_000), "more than the limit"),
    "codes": ("hashed_dataset.npy", edit_array(lambda a: a + 16), "are not from 0 to 15"),
    "fewer codes": ("hashed_dataset.npy", edit_array(lambda a: a[:, :1]), "has shape"),
    "fewer rows": ("hashed_dataset.npy", edit_array(lambda a: a[1:]), "has shape"),
    "partition": ("datapoint_to_token.npy", edit_array(lambda a: a + 999), "are not from 0 to 14"),
    "below zero": ("datapoint_to_token.npy", edit_array(lambda a: a - 1), "are not from 0 to 14"),
    "config": ("scann_config.pb", lambda path: path.write_bytes(b"\xff"), "Failed to parse"),
}


@pytest.mark.parametrize(("name", "write", "message"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_scann_reads_within_the_folder_and_its_arrays(
    tmp_path_factory, small_thresholds, name, write, message
):
    pytest.importorskip("scann")
    small_thresholds(100, 200)
    whole = tmp_path_factory.getbasetemp() / "partitioned"
    if not whole.exists():
        Index.build(make_vectors(240, 4), backend="scann", encoder="e").save(whole)
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("scann") / "index")
    Index.load(folder, encoder="e")
    rewrite_file(folder, name, write)
    with pytest.raises(RagJaxError, match=message) as error:
        Index.load(folder, encoder="e")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_another_encoders_index_is_refused(tmp_path):
    index = Index.build(make_vectors(20, 4), backend="exact", encoder="a" * 64)
    index.save(tmp_path / "index")
    message = f"was made by encoder {'a' * 16}, not {'b' * 16}: build the index again"
    with pytest.raises(RagJaxError, match=message):
        Index.load(tmp_path / "index", encoder="b" * 64)


@needs_scann
def test_without_scann(tmp_path, monkeypatch):
    index = Index.build(make_vectors(20, 4), backend="scann", encoder="e")
    index.save(tmp_path / "index")
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(
        RagJaxError, match=r"ScaNN is not installed here .*: use the backend 'exact'"
    ):
        Index.build(make_vectors(20, 4), backend="scann", encoder="e")
    with pytest.raises(RagJaxError, match=r"ScaNN is not installed here .*: build .* again"):
        Index.load(tmp_path / "index", encoder="e")


def name_rows(count, start=0):
    return [f"p{i}" for i in range(start, start + count)]


@backends
@pytest.mark.parametrize("named", [True, False])
def test_add_and_remove_give_what_building_gives(backend, named):
    embeddings, queries = make_vectors(60, 8), make_vectors(7, 8, seed=1)
    ids = name_rows(60) if named else None
    gone = [0, 7, 58]
    index = Index.build(
        embeddings[:50], backend=backend, encoder="e", ids=ids and ids[:50], corpus="old"
    )
    grown = index.add(embeddings[50:], ids=ids and ids[50:], corpus="new")
    shrunk = grown.remove([ids[row] for row in gone] if named else gone)
    stay = np.delete(np.arange(60), gone)
    for changed, rows in [(index, np.arange(50)), (grown, np.arange(60)), (shrunk, stay)]:
        fresh = Index.build(embeddings[rows], backend=backend, encoder="e")
        np.testing.assert_array_equal(changed.embeddings, fresh.embeddings)
        for ours, theirs in zip(changed.search(queries, 9), fresh.search(queries, 9), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert changed.ids == (tuple(ids[row] for row in rows) if named else None)
    assert (index.corpus, grown.corpus, shrunk.corpus) == ("old", "new", "")
    assert (shrunk.backend, shrunk.encoder) == (backend, "e")


@needs_scann
def test_a_growing_index_gets_the_settings_of_its_size(small_thresholds, tmp_path):
    small_thresholds(1_000, 2_000)
    embeddings, queries = make_clusters(2_500, 16), make_clusters(50, 16, seed=1)
    index = Index.build(embeddings[:900], backend="scann", encoder="e")
    files = {}
    for size in (900, 1_500, 2_500, 1_500, 900):
        if size > index.size:
            index = index.add(embeddings[index.size : size])
        elif size < index.size:
            index = index.remove(range(size, index.size))
        index.save(tmp_path / "index")
        files.setdefault(size, []).append(set(saved_files(tmp_path / "index")))
        expected = search_slowly(embeddings[:size], queries, 10)[1]
        rows = index.search(queries, 10)[1]
        found = [len(set(a) & set(b)) for a, b in zip(rows, expected, strict=True)]
        assert np.mean(found) / 10 == 1 if size == 900 else np.mean(found) / 10 > 0.8
    assert "ah_codebook.pb" not in files[900][0]
    assert files[1_500][0] == files[900][0] | {"ah_codebook.pb", "hashed_dataset.npy"}
    assert "serialized_partitioner.pb" in files[2_500][0] - files[1_500][0]
    assert all(a == b for a, b in (files[900], files[1_500]))


def test_a_changed_index_of_nearly_the_same_size_compiles_nothing():
    embeddings, queries = make_vectors(600, 7), make_vectors(8, 7, seed=1)
    jax.clear_caches()
    index = index_exactly(embeddings[:545])
    index.search(queries, 5)
    compiled = exact._find_top._cache_size()
    for changed in [
        index.add(embeddings[545:560]),
        index_exactly(-embeddings[:550]),
        index_exactly(embeddings).remove(range(0, 50)),
    ]:
        np.testing.assert_array_equal(
            changed.search(queries, 5)[1], search_slowly(changed.embeddings, queries, 5)[1]
        )
    assert exact._find_top._cache_size() == compiled == 1

    # Nor does a program of the caller's own that takes the shards and the size as arguments.
    find = jax.jit(lambda shards, queries, size: exact.find_top(shards, queries, k=3, size=size))
    for size in (545, 550, 576):
        index = index_exactly(embeddings[:size])
        rows = find(index.searcher, queries, size)
        np.testing.assert_array_equal(rows, search_slowly(embeddings[:size], queries, 3)[1])
    assert find._cache_size() == 1


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 3_000))
def test_shards_are_rounded_up_by_a_sixteenth_at_most(size):
    _, _, rows = exact.place_exact(np.ones((size, 1), np.float32)).shape
    assert size <= rows <= size * 17 / 16
    assert rows == size or size >= 32


@pytest.mark.parametrize("k", [1, 33])
def test_filling_is_never_found(k):
    """Its dot products are zero, and larger than any other here."""
    embeddings = -np.abs(make_vectors(33, 4))
    assert exact.place_exact(embeddings).shape[-1] > 33
    rows = index_exactly(embeddings).search(-embeddings[:3], k)[1]
    np.testing.assert_array_equal(rows, search_slowly(embeddings, -embeddings[:3], k)[1])


@backends
def test_ids_survive_saving(tmp_path, backend):
    ids = ["", "서울", "a/b", "\ud800", *name_rows(16)]
    index = Index.build(make_vectors(20, 4), backend=backend, encoder="e", ids=ids, corpus="c")
    index.save(tmp_path / "index")
    assert "ids.json" in saved_files(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", encoder="e", corpus="c")
    assert (loaded.ids, loaded.corpus) == (tuple(ids), "c")
    assert loaded.remove(["서울"]).ids == tuple(ids[:1] + ids[2:])


def test_another_corpus_is_refused(tmp_path):
    passages = [Passage("1", "Seoul", "A city."), Passage("2", "", "no title")]
    corpus = fingerprint_corpus(passages)
    others = [
        fingerprint_corpus(other)
        for other in (
            passages[:1],
            passages[::-1],
            [replace(p, id=id) for p, id in zip(passages, "21", strict=True)],
            [Passage("1", "Seoul A", "city."), passages[1]],
        )
    ]
    assert len({corpus, *others}) == 5
    assert corpus == fingerprint_corpus(iter(passages))
    Index.build(np.eye(2), backend="exact", encoder="e", corpus=corpus).save(tmp_path / "index")
    assert Index.load(tmp_path / "index", encoder="e").corpus == corpus
    for other in others:
        message = f"was made over corpus {corpus[:16]}, not {other[:16]}: build the index again"
        with pytest.raises(RagJaxError, match=message):
            Index.load(tmp_path / "index", encoder="e", corpus=other)
    index_exactly(np.eye(2)).save(tmp_path / "index")
    with pytest.raises(RagJaxError, match="was made over corpus unknown, not"):
        Index.load(tmp_path / "index", encoder="e", corpus=corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, _: i.add(np.eye(4), ids=name_rows(4)), "id.* 'p0' is not unique"),
        (lambda i, _: i.add(np.eye(4), ids=["x", "y", "x", "z"]), "'x' is not unique"),
        (lambda i, _: i.add(np.eye(4), ids=["x"]), "ids are 1 for 4 embeddings"),
        (lambda i, _: i.add(np.eye(4), ids="wxyz"), "ids are one string: pass a list"),
        (lambda i, _: i.add(np.eye(4), ids=[1, 2, 3, 4]), "ids: entry 0 is 1, not a string"),
        (lambda i, _: i.add(np.eye(4)), "the index has ids: pass ids"),
        (lambda _, j: j.add(np.eye(4), ids=name_rows(4)), "the index has no ids: leave ids out"),
        (lambda i, _: i.add(np.eye(3), ids=["x", "y", "z"]), "embeddings have 3 dimensions, but"),
        (lambda _, j: j.add(np.full((1, 4), np.nan)), "embeddings: row 0 has a NaN"),
        (lambda i, _: i.remove(["p3", "q"]), "id 'q' is not in the index"),
        (lambda i, _: i.remove([3]), "id 3 is not in the index"),
        (lambda i, _: i.remove("p3"), "'p3' is one string: pass a list of ids"),
        (lambda _, j: j.remove([20]), "row 20 is not in the index"),
        (lambda _, j: j.remove([-1]), "row -1 is not in the index"),
        (lambda _, j: j.remove(["p3"]), "rows must be a list of integers: of a mask"),
        (lambda i, _: i.remove(name_rows(20)), "removing all 20 rows leaves no index"),
    ],
)
def test_bad_changes(change, message):
    embeddings = make_vectors(20, 4)
    named = Index.build(embeddings, backend="exact", encoder="e", ids=name_rows(20))
    with pytest.raises(RagJaxError, match=message) as error:
        change(named, index_exactly(embeddings))
    assert "\n" not in str(error.value)


def test_adding_or_removing_nothing_changes_nothing():
    index = Index.build(np.eye(4), backend="exact", encoder="e", ids=name_rows(4))
    for same in (index.add(np.zeros((0, 4)), ids=[]), index.remove([])):
        np.testing.assert_array_equal(same.embeddings, index.embeddings)
        assert same.ids == index.ids


@needs_scann
@pytest.mark.parametrize("times", [1, 10, 1_000])
@pytest.mark.parametrize("count", [1, 20])
def test_a_few_long_rows_take_nothing_from_scanns_recall(
    small_thresholds, tmp_path, times, count, caplog
):
    """One row that is 1,000 times as long as the others left hashing a recall of 0.06."""
    small_thresholds(1_000, 10_000)
    embeddings, queries = make_clusters(5_000, 32), make_clusters(60, 32, seed=1)
    embeddings[7 : 7 + count] *= times
    expected = search_slowly(embeddings, queries, 10)
    index = Index.build(embeddings, backend="scann", encoder="e")
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", encoder="e")
    np.testing.assert_array_equal(loaded.embeddings, embeddings)
    for searched in (index, loaded):
        scores, rows = searched.search(queries, 10)
        assert {len(set(found)) for found in rows.tolist()} == {10}
        found = [len(set(a) & set(b)) for a, b in zip(rows, expected[1], strict=True)]
        assert np.mean(found) / 10 > 0.9
        wanted = np.einsum("qd,qkd->qk", queries, embeddings[rows])
        np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
        long = (rows >= 7) & (rows < 7 + count)
        assert long.any() or times == 1
    assert caplog.text == ""


@needs_scann
def test_many_long_rows_are_warned_of(small_thresholds, caplog):
    small_thresholds(1_000, 10_000)
    embeddings = make_clusters(2_000, 8)
    embeddings[:300] *= 100
    Index.build(embeddings, backend="scann", encoder="e")
    assert "300 of 2000 embeddings are over 3 times as long as the median" in caplog.text
    caplog.clear()
    # Rows without a length do not make all others long.
    embeddings = make_clusters(2_000, 8)
    embeddings[300:] = 0
    Index.build(embeddings, backend="scann", encoder="e")
    assert caplog.text == ""


def test_products_that_are_too_large_are_refused():
    index = index_exactly(1e20 * make_vectors(20, 4))
    with pytest.raises(RagJaxError, match="too large: their dot products are beyond float32"):
        index.search(1e20 * make_vectors(2, 4, seed=1), 3)


def test_rows_to_remove_and_counts_as_numpy_has_them():
    embeddings = make_vectors(20, 4)
    index = index_exactly(embeddings)
    wanted = index.remove([3, 5]).embeddings
    np.testing.assert_array_equal(index.remove(np.asarray([3, 5])).embeddings, wanted)
    assert index.remove([]).size == 20
    np.testing.assert_array_equal(index.remove(iter([3, 5])).embeddings, wanted)
    named = Index.build(embeddings, backend="exact", encoder="e", ids=name_rows(20))
    np.testing.assert_array_equal(named.remove(iter(named.ids[3:6:2])).embeddings, wanted)
    for wrong in ([True] + [False] * 19, [1.0], np.asarray([[1, 2]])):
        with pytest.raises(RagJaxError, match="rows must be a list of integers: of a mask take"):
            index.remove(wrong)
    for row in (-1, 20):
        with pytest.raises(RagJaxError, match=f"row {row} is not in the index"):
            index.remove([row])
    queries = make_vectors(2, 4, seed=1)
    found = index.search(queries, np.int64(3))
    np.testing.assert_array_equal(found[1], index.search(queries, 3)[1])
    with pytest.raises(RagJaxError, match="k is True: it must be from 1 to 20"):
        index.search(queries, True)
