"""Sums of an inverted index's scores, against all passages' sums."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rag_jax.retrieval import postings
from rag_jax.retrieval.postings import find_best

WORDS, SIZE = 6, 12


def make_index(seed):
    """A random index: float32 scores, some of them negative, of every word in some passages."""
    random = np.random.default_rng(seed)
    rows = [np.flatnonzero(random.random(SIZE) < 0.5).astype(np.int32) for _ in range(WORDS)]
    data = [random.choice([-1.0, 0.3, 0.1, 2.0], len(row)).astype(np.float32) for row in rows]
    starts = np.cumsum([0, *map(len, rows)])
    return np.concatenate(data), np.concatenate(rows), starts


def compile_loops():
    """The search as numba compiles it."""
    pytest.importorskip("numba", reason="the extra numba is not installed")
    return postings._choose_search.__wrapped__()


@pytest.mark.parametrize("way", ["numpy", "loops", "compiled"])
def test_the_best_of_all_sums(way, monkeypatch):
    ways = {"numpy": lambda: postings._search, "loops": lambda: postings._search_in_loops}
    search = (ways | {"compiled": compile_loops})[way]()
    monkeypatch.setattr(postings, "_choose_search", lambda: search)
    weights = st.sampled_from([0.0, 1.0, -1.0, 0.7])

    @hypothesis.given(
        seed=st.integers(0, 99),
        question=st.lists(st.tuples(st.integers(0, WORDS - 1), weights), max_size=8),
        k=st.integers(1, SIZE),
    )
    @hypothesis.settings(max_examples=60, deadline=None)
    def check(seed, question, k):
        data, rows, starts = make_index(seed)
        words = np.asarray([word for word, _ in question], np.int64)
        weights = np.asarray([weight for _, weight in question], np.float32)
        sums, room = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
        for word, weight in zip(words, weights, strict=True):
            for place in range(starts[word], starts[word + 1]):
                sums[rows[place]] += weight * data[place]
        best = sorted((row for row in range(SIZE) if sums[row] > 0), key=lambda r: (-sums[r], r))
        for _ in range(2):  # the room is left as it was
            found_sums, found = find_best(data, rows, starts, words, weights, room, k=k)
            assert found.tolist() == best[:k] and found.dtype == np.int32
            np.testing.assert_array_equal(found_sums, sums[best[:k]])
            assert not room.any()

    check()


@pytest.mark.parametrize("writable", [True, False])
def test_numba_is_taken_where_it_is_installed(writable, monkeypatch):
    numba = pytest.importorskip("numba", reason="the extra numba is not installed")
    if not writable:  # then no place for the compiled program is found
        monkeypatch.setattr(numba.core.config, "CACHE_LOCATOR_CLASSES", "None")
    search = postings._choose_search.__wrapped__()
    assert isinstance(search, numba.core.dispatcher.Dispatcher)
    data, rows, starts = make_index(0)
    found = [
        way(data, rows, starts, np.arange(3), np.ones(3, np.float32), np.zeros(SIZE, np.float32), 4)
        for way in (search, postings._search)
    ]
    np.testing.assert_array_equal(*found)
    assert bool(search.stats.cache_path) == writable
