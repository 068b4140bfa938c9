"""Searching a corpus that is swapped underneath, and working ahead in a thread."""

import threading
import time
import types

import jax
import numpy as np
import pytest

from rag_jax.errors import RagJaxError
from rag_jax.retrieval import Index, Retriever, prefetch, searchers

QUERIES = {"first": [1.0, 0.0, 0.0], "second": [0.1, 1.0, 0.0]}


def encode(questions):
    return np.float32([QUERIES[question] for question in questions])


def build(embeddings):
    return Index.build(embeddings, backend="exact", encoder="e")


def test_search():
    embeddings = np.eye(3, dtype=np.float32)
    found = Retriever(build(embeddings), ["a", "b", "c"], encode).search(["second", "first"], 2)
    np.testing.assert_array_equal(found.rows, [[1, 0], [0, 1]])
    assert found.passages == [["b", "a"], ["a", "b"]]
    np.testing.assert_array_equal(found.embeddings, embeddings[found.rows])
    products = np.einsum("qd,qkd->qk", encode(["second", "first"]), found.embeddings)
    np.testing.assert_array_equal(found.scores, products)


def test_swapping_changes_the_answers_and_compiles_nothing():
    jax.clear_caches()
    retriever = Retriever(build(np.eye(3)), ["a", "b", "c"], encode)
    retriever.search(["first"], 1)
    compiled = searchers._find_top._cache_size()
    retriever.swap(build(np.eye(3)[::-1]), ["A", "B", "C"])
    assert retriever.search(["first"], 1).passages == [["C"]]
    assert searchers._find_top._cache_size() == compiled
    assert retriever.index.size == 3


def test_the_encoder_may_change_between_searches():
    turned = [False]

    def encode_now(questions):
        return encode(questions)[:, ::-1] if turned[0] else encode(questions)

    retriever = Retriever(build(np.eye(3)), ["a", "b", "c"], encode_now)
    assert retriever.search(["first"], 1).passages == [["a"]]
    turned[0] = True
    assert retriever.search(["first"], 1).passages == [["c"]]


def test_passages_must_fit_the_index():
    with pytest.raises(RagJaxError, match="the index has 3 rows, but there are 2 passages"):
        Retriever(build(np.eye(3)), ["a", "b"], encode)
    retriever = Retriever(build(np.eye(3)), ["a", "b", "c"], encode)
    with pytest.raises(RagJaxError, match="the index has 2 rows, but there are 3 passages"):
        retriever.swap(build(np.eye(2)), ["a", "b", "c"])
    assert retriever.search(["first"], 1).passages == [["a"]]


def test_swapping_while_another_thread_searches():
    """Every search sees an index with its own passages."""
    corpora = [(build(np.eye(3) * scale), [scale] * 3) for scale in (1, 2)]
    retriever = Retriever(*corpora[0], encode)
    done = threading.Event()

    def swap():
        while not done.is_set():
            for corpus in corpora:
                retriever.swap(*corpus)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(100):
            found = retriever.search(["first"], 1)
            assert found.passages[0][0] == found.scores[0, 0] == found.embeddings[0, 0, 0]
    finally:
        done.set()
        thread.join()


# Working ahead.


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order(depth):
    assert list(prefetch(range(20), depth)) == list(range(20))
    assert list(prefetch([], depth)) == []


def threads_left():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 3])
def test_how_far_it_goes_ahead(depth):
    made = []

    def make():
        for i in range(10):
            made.append(i)
            yield i

    items = prefetch(make(), depth)
    assert made == []
    for i in items:
        wanted = min(i + 1 + depth, 10)
        deadline = time.monotonic() + 10
        while len(made) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        assert len(made) == wanted
    assert threads_left() == []


def test_the_next_item_is_made_meanwhile():
    """Neither side could go on alone: each waits for the other."""
    consumed, making = threading.Event(), threading.Event()

    def make():
        yield 0
        making.set()
        assert consumed.wait(10)
        yield 1

    items = prefetch(make())
    assert next(items) == 0
    assert making.wait(10)
    consumed.set()
    assert list(items) == [1]


def test_errors_come_in_their_place():
    def make():
        yield 1
        raise RagJaxError("no more")

    items = prefetch(make())
    assert next(items) == 1
    with pytest.raises(RagJaxError, match="no more"):
        next(items)
    assert threads_left() == []
    assert list(items) == []


def test_leaving_early_ends_the_thread():
    items = prefetch(iter(int, 1), 3)
    next(items)
    items.close()
    assert threads_left() == []


def test_a_mesh_of_several_devices_has_no_thread(monkeypatch):
    monkeypatch.setattr(jax.sharding, "get_mesh", lambda: types.SimpleNamespace(size=8))
    where = []
    items = prefetch(where.append(threading.current_thread().name) or i for i in range(3))
    assert where == []
    assert next(items) == 0
    assert where == [threading.current_thread().name]


def test_depth_must_be_positive():
    with pytest.raises(RagJaxError, match="depth is 0: it must be at least 1"):
        prefetch([], 0)
