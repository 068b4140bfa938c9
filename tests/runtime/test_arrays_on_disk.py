"""Arrays as `.npy` files, and what a full disk leaves."""

import ml_dtypes
import numpy as np
import pytest

from rag_jax.data.passages import Passage
from rag_jax.pipeline import own_corpus
from rag_jax.retrieval import Index
from rag_jax.runtime import files
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, map_array, save_array, save_rows

NUMBERS = np.arange(24).reshape(4, 6)


@pytest.fixture
def full(monkeypatch):
    """Every file that is opened for writing is on a full disk."""

    def open_full(path, mode, **options):
        return open("/dev/full", mode, **options)

    monkeypatch.setattr(files, "open", open_full, raising=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64, np.uint16, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_comes_back(dtype, order, tmp_path):
    array = np.asarray(NUMBERS.astype(dtype), order=order)
    save_array(tmp_path / "a.npy", array)
    for read in (np.load, map_array):
        kept = read(tmp_path / "a.npy")
        assert kept.dtype == dtype
        np.testing.assert_array_equal(kept, array)


@pytest.mark.parametrize("array", [NUMBERS[:0], NUMBERS[:, ::-2], NUMBERS[0], NUMBERS[:, :0]])
def test_odd_shapes(array, tmp_path):
    save_array(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)


def test_pieces_of_any_order_are_rows(tmp_path):
    pieces = [np.asfortranarray(NUMBERS[:3]), NUMBERS[3:]]
    save_rows(tmp_path / "a.npy", pieces, 4)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), NUMBERS)


def test_bytes_are_those_that_numpy_writes(tmp_path):
    for array in (NUMBERS, np.ones((2, 3), ml_dtypes.bfloat16)):
        save_array(tmp_path / "ours.npy", array)
        np.save(tmp_path / "theirs.npy", array)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.parametrize("backend", ["exact", "faiss_flat"])
def test_a_full_disk_is_one_line(backend, full, tmp_path):
    index = Index.build(np.eye(40, dtype=np.float32), backend=backend, encoder="e")
    message = "^cannot write .*: no space left on device; free some"
    with pytest.raises(RagJaxError, match=message), explain_disk_errors(tmp_path):
        index.save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_what_a_full_disk_does_not_keep_is_used(full, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(own_corpus, "cache_folder", lambda: tmp_path)
    wanted = np.ones((2, 3), np.float32)
    encode = lambda texts, progress: wanted  # noqa: E731
    options = {"name": "mine", "encoder": "e", "max_length": 8}
    assert own_corpus.embed_texts(["a", "b"], encode, **options) is wanted
    passages = [Passage("1", "", "a")]
    assert own_corpus.keep_measured(passages, lambda: {"longest": 3}, by="x") == {"longest": 3}
    written = capfd.readouterr().err
    assert written.count("cannot be kept (no space left on device): set RAG_JAX_CACHE") == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch, capfd):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(own_corpus, "cache_folder", lambda: tmp_path / "file")
    passages = [Passage("1", "", "a")]
    assert own_corpus.keep_measured(passages, lambda: {"longest": 3}, by="x") == {"longest": 3}
    assert "cannot be kept (not a directory)" in capfd.readouterr().err
