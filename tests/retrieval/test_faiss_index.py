"""FAISS's backends: recall, sameness, lengths, saved arrays, and what is wrong with those."""

import json
import shutil
import sys

import numpy as np
import pytest
from damage import damage_bytes, refuses_in_a_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag_jax.retrieval import Index, faiss_index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

faiss = pytest.importorskip("faiss", reason="FAISS is not installed (the extra faiss)")

BACKENDS = ("faiss_flat", "faiss_hnsw", "faiss_ivfpq", "faiss_ivfrabitq")
INDEXED = BACKENDS[1:]
WIDTH = 16


def make_clusters(rows, width=WIDTH, *, seed=0):
    """Vectors around 50 centres, as passages on the same topic are."""
    centres = np.random.default_rng(99).standard_normal((50, width))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(50, size=rows)] + 0.5 * rng.standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def search_slowly(embeddings, queries, k):
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def measure_recall(index, queries, k=10):
    wanted = search_slowly(index.embeddings, queries, k)
    rows = index.search(queries, k)[1]
    assert {len(set(row)) for row in rows.tolist()} == {k}
    return np.mean([len({*a} & {*b}) / k for a, b in zip(rows, wanted, strict=True)])


@pytest.fixture
def small(monkeypatch):
    """Lets a corpus of a few hundred rows have an index."""
    monkeypatch.setattr(faiss_index, "_INDEX_FROM", 400)
    monkeypatch.setattr(faiss_index, "_FEWEST_PROBED", 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with an index of each backend, over 600 rows."""
    folder = tmp_path_factory.mktemp("faiss")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_index, "_INDEX_FROM", 400)
        for backend in INDEXED:
            ids = [str(row) for row in range(600)]
            built = Index.build(make_clusters(600), backend=backend, encoder="e", ids=ids)
            built.save(folder / backend)
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8)
@given(data=st.data(), size=st.integers(1, 40), width=st.integers(1, 9))
def test_search_against_argsort(backend, data, size, width):
    """Few rows are compared one by one, whatever the backend."""
    k = data.draw(st.integers(1, size))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    spread = data.draw(st.sampled_from([0, 1, 3]))
    vectors = rng.standard_normal((size, width)) * 10.0 ** rng.uniform(-spread, spread, (size, 1))
    queries = rng.standard_normal((data.draw(st.integers(0, 5)), width)).astype(np.float32)
    index = Index.build(vectors, backend=backend, encoder="e")
    scores, rows = index.search(queries, k)
    assert (scores.dtype, rows.dtype, rows.shape) == (np.float32, np.int32, (len(queries), k))
    wanted = search_slowly(index.embeddings, queries, k)
    expected = np.einsum("qd,qkd->qk", queries, index.embeddings[wanted])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * 10**spread)
    assert {len(set(row)) for row in rows.tolist()} <= {k}


@pytest.mark.parametrize("backend", INDEXED)
@pytest.mark.parametrize("lengths", ["one", "100 times", "one row", "20 rows"])
def test_recall_at_all_lengths(small, monkeypatch, backend, lengths):
    """In one index, 20 rows 100 times as long as the others left codes a recall of 0.41."""
    monkeypatch.setattr(faiss_index, "_RESCORED", 3)
    monkeypatch.setattr(faiss_index, "_FEWEST_RESCORED", 30)
    embeddings, queries = make_clusters(2_000), make_clusters(50, seed=1)
    if lengths == "100 times":
        spread = np.random.default_rng(0).uniform(-1, 1, (2_000, 1))
        embeddings *= 10 ** spread.astype(np.float32)
    elif lengths == "one row":
        embeddings[7] *= 1_000
    elif lengths == "20 rows":
        embeddings[:20] *= 100
    index = Index.build(embeddings, backend=backend, encoder="e")
    assert any(part.index is not None for part in index.searcher.parts)
    assert measure_recall(index, queries) > 0.9


def test_parts_hold_rows_of_similar_length():
    lengths = np.asarray([1, 50, 2, 0, 100, 2.9, 1e-9, 40, 0], np.float32)
    parts = faiss_index.split_by_length(lengths[:, None] * np.ones((1, 1), np.float32))
    assert [part.tolist() for part in parts] == [[1, 4, 7], [0, 2, 5], [6], [3, 8]]
    many = faiss_index.split_by_length(np.float32(4) ** -np.arange(20, dtype=np.float32)[:, None])
    assert [len(part) for part in many] == [1] * 7 + [13]


@pytest.mark.parametrize("backend", INDEXED)
def test_the_same_embeddings_give_the_same_files(small, backend, tmp_path):
    """Whatever the number of threads, which are 4 and then 1."""
    embeddings, before = make_clusters(1_500), faiss.omp_get_max_threads()
    try:
        for threads in (4, 1):
            faiss.omp_set_num_threads(threads)
            Index.build(embeddings, backend=backend, encoder="e").save(tmp_path / str(threads))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    first, second = (json.loads((tmp_path / n / "index.json").read_text()) for n in "41")
    assert len(first["sha256"]) > 3 and first == second


@pytest.mark.parametrize("backend", INDEXED)
def test_an_index_survives_saving(small, saved, backend):
    queries = make_clusters(20, seed=1)
    built = Index.build(make_clusters(600), backend=backend, encoder="e")
    loaded = Index.load(saved / backend, encoder="e", backend=backend, storage="float32")
    assert loaded.ids[-1] == "599"
    for ours, theirs in zip(built.search(queries, 15), loaded.search(queries, 15), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("backend", INDEXED)
def test_parts_survive_saving(small, backend, tmp_path):
    embeddings, queries = make_clusters(1_200), make_clusters(20, seed=1)
    embeddings[::2] *= 100
    embeddings[5] *= 1e-4
    built = Index.build(embeddings, backend=backend, encoder="e")
    assert [len(part.rows) for part in built.searcher.parts] == [600, 599, 1]
    built.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index", encoder="e")
    np.testing.assert_array_equal(loaded.search(queries, 9)[1], built.search(queries, 9)[1])


@pytest.mark.parametrize("backend", INDEXED)
@pytest.mark.parametrize("k", [1, 350, 600])
def test_as_many_rows_as_are_asked_for(small, saved, backend, k):
    """Also where the partitions that are looked at hold fewer."""
    index, queries = Index.load(saved / backend, encoder="e"), make_clusters(5, seed=1)
    rows = index.search(queries, k)[1]
    assert rows.min() >= 0 and {len(set(row)) for row in rows.tolist()} == {k}
    if k == 600:
        np.testing.assert_array_equal(rows, search_slowly(index.embeddings, queries, k))


@pytest.mark.parametrize("backend", INDEXED)
@pytest.mark.parametrize("value", [0, 1])
def test_equal_rows(small, backend, value):
    """Which leave a graph in pieces, and partitions without rows."""
    same = Index.build(np.full((600, 4), value, np.float32), backend=backend, encoder="e")
    rows = same.search(np.ones((2, 4)), 350)[1]
    assert {len(set(row)) for row in rows.tolist()} == {350} and rows.min() >= 0


@pytest.mark.parametrize("backend", INDEXED)
def test_more_effort_finds_more(small, saved, backend):
    index, queries = Index.load(saved / backend, encoder="e"), make_clusters(50, seed=1)
    wanted, found = search_slowly(index.embeddings, queries, 5), []
    for effort in (1, 15):
        rows = faiss_index.search_faiss(index.searcher, queries, 5, 600, effort=effort)
        pairs = zip(rows.tolist(), wanted.tolist(), strict=True)
        found.append(np.mean([len({*a} & {*b}) / 5 for a, b in pairs]))
    assert found[0] <= found[1] and found[1] > 0.95


def test_dot_products_beyond_float32_are_refused():
    embeddings = np.tile(np.asarray([1e38, -1e38], np.float32), (300, 32))
    index = Index.build(embeddings, backend="faiss_flat", encoder="e")
    with pytest.raises(RagJaxError, match="are beyond float32: scale them"):
        index.search(np.full((40, 64), 1e38), 3)


def sign(path):
    """Writes the hash of a file into the manifest: the index's author may have made it so."""
    manifest = path.with_name("index.json")
    read = json.loads(manifest.read_text())
    read["sha256"][path.name] = hash_file(path)
    manifest.write_text(json.dumps(read))


def edit(change):
    """Changes an array in place."""

    def write(path):
        array = np.load(path)
        np.save(path, array if (changed := change(array)) is None else changed)
        sign(path)

    return write


def put(place, value):
    def change(array):
        array[place] = value

    return edit(change)


def remove(path):
    path.unlink()


def add_hole(path):
    """64 GiB that the disk does not have: the file is refused before it is read."""
    with open(path, "r+b") as file:
        file.truncate(1 << 36)


HNSW, PQ, RABITQ = INDEXED
DAMAGE = {
    "no ids": (PQ, "faiss_0_rows", remove, "is missing: build the index again"),
    "no parts": (HNSW, "faiss_parts", remove, "is missing: build the index again"),
    "a byte": (PQ, "faiss_0_codes", lambda p: p.write_bytes(p.read_bytes()[:-1]), "was altered"),
    "huge": (HNSW, "faiss_0_neighbours", add_hole, "bytes, more than the limit of .*: build"),
    "a part": (HNSW, "faiss_parts", put(0, 9), "names a part that there is not"),
    "fewer parts": (HNSW, "faiss_parts", edit(lambda a: a[1:]), "has shape"),
    "level": (HNSW, "faiss_0_levels", put(0, 99), "has levels out of range"),
    "no level": (HNSW, "faiss_0_levels", put(0, 0), "has levels out of range"),
    "another level": (HNSW, "faiss_0_levels", put(slice(0, 2), (3, 2)), "has shape"),
    "neighbour": (HNSW, "faiss_0_neighbours", put(0, 600), "leads to rows out of range"),
    "below zero": (HNSW, "faiss_0_neighbours", put(0, -2), "leads to rows out of range"),
    "entry": (HNSW, "faiss_0_entry", put(0, 600), "is no row at the top"),
    "floats": (HNSW, "faiss_0_neighbours", edit(lambda a: a.astype("f4")), "holds float32"),
    "sizes": (RABITQ, "faiss_0_sizes", put(0, 700), "has other sizes than those of 600 rows"),
    "size": (RABITQ, "faiss_0_sizes", put(slice(0, 2), (-1, 99)), "has other sizes"),
    "twice": (PQ, "faiss_0_rows", put(0, 5), "has a row twice or out of range"),
    "row": (PQ, "faiss_0_rows", put(0, 600), "has a row twice or out of range"),
    "codes": (RABITQ, "faiss_0_codes", edit(lambda a: a[:, 1:]), "has shape"),
    "centres": (PQ, "faiss_0_centres", put(0, np.nan), "row 0 has a NaN"),
    "books": (PQ, "faiss_0_codebooks", edit(lambda a: a[1:]), "has shape"),
    "rotation": (RABITQ, "faiss_rotation", put(3, np.inf), "row 3 has a NaN or an infinity"),
    "NaN": (HNSW, "dataset", put((9, 0), np.nan), "dataset.npy: row 9 has a NaN"),
    "pickle": (HNSW, "faiss_0_entry", edit(lambda a: a.astype(object)), "cannot be read"),
}


@pytest.mark.parametrize(("backend", "name", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_arrays_are_refused_in_a_line(
    small, saved, tmp_path, backend, name, damage, message
):
    folder = shutil.copytree(saved / backend, tmp_path / "index")
    Index.load(folder, encoder="e")
    damage(folder / f"{name}.npy")
    with pytest.raises(RagJaxError, match=message) as error:
        Index.load(folder, encoder="e")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


ARRAYS = [(HNSW, name) for name in ("levels", "neighbours", "entry")]
ARRAYS += [(PQ, name) for name in ("centres", "sizes", "rows", "codes", "codebooks")]
ARRAYS += [(RABITQ, "codes"), (RABITQ, "centres")]


@pytest.mark.parametrize(("backend", "name"), ARRAYS)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_searched(small, saved, backend, name, data):
    """Whatever is in a file, of which the hash is right, FAISS reads within its arrays."""
    path, queries = saved / backend / f"faiss_0_{name}.npy", make_clusters(9, seed=1)
    whole, manifest = path.read_bytes(), (saved / backend / "index.json").read_bytes()

    def load():
        for k in (1, 300):
            Index.load(saved / backend, encoder="e").search(queries, k)

    try:
        path.write_bytes(data.draw(damage_bytes(whole)))
        if len(path.read_bytes()) > 128 and data.draw(st.booleans()):  # the header stays
            path.write_bytes(whole[:128] + data.draw(damage_bytes(whole[128:])))
        sign(path)
        refuses_in_a_line(load)
    finally:
        path.write_bytes(whole)
        (saved / backend / "index.json").write_bytes(manifest)
    assert not refuses_in_a_line(load)


def test_a_neighbour_has_the_level_that_leads_to_it(small, saved, tmp_path):
    """FAISS reads beyond its arrays otherwise."""
    folder = shutil.copytree(saved / HNSW, tmp_path / "index")
    levels = np.load(folder / "faiss_0_levels.npy")
    upper, low = int(np.argmax(levels > 1)), int(np.argmax(levels == 1))
    index = faiss_index.make_hnsw(WIDTH)
    ends = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)
    place = int(ends[levels[:upper]].sum() + ends[1])  # the first on the second level
    put(place, low)(folder / "faiss_0_neighbours.npy")
    with pytest.raises(RagJaxError, match="leads to rows out of range"):
        Index.load(folder, encoder="e")


def test_another_backend_than_asked_is_refused(saved):
    message = "was built with backend 'faiss_hnsw', not 'faiss_ivfpq': build the index again"
    with pytest.raises(RagJaxError, match=message):
        Index.load(saved / HNSW, encoder="e", backend=PQ)


def test_without_faiss(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    message = r"FAISS is not installed here \(pip install 'rag_jax\[faiss\]'\): "
    with pytest.raises(RagJaxError, match=message + "use the backend 'exact'"):
        Index.build(make_clusters(20), backend=PQ, encoder="e")
    with pytest.raises(RagJaxError, match=message + "build the index in .* again with"):
        Index.load(saved / PQ, encoder="e")
