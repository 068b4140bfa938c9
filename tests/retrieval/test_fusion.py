"""Fusion against a slow reference, and searchers that break their promise."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.retrieval import BM25, Dense, Fused, Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import FusionConfig


@dataclass
class Fixed:
    """A searcher that finds for every question what it is given."""

    size: int
    hits: list  # rows and scores, best first

    def search(self, questions, k):
        rows, scores = zip(*self.hits[:k], strict=True) if self.hits else ((), ())
        found = np.asarray(scores, np.float32), np.asarray(rows, np.int32)
        return [found[0] for _ in questions], [found[1] for _ in questions]


def fuse_slowly(rankings, by, constant, weights):
    """The sums of the docstring, as fractions, by row."""
    sums = {}
    for weight, hits in zip(weights, rankings, strict=True):
        scores = [float(np.float32(score)) for _, score in hits]
        for rank, (row, _) in enumerate(hits, 1):
            value = 1 / (constant + rank)
            if by == "scores":
                low, high = min(scores), max(scores)
                value = (scores[rank - 1] - low) / (high - low) if high > low else 1.0
            sums[row] = sums.get(row, Fraction(0)) + Fraction(weight * value)
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))


@st.composite
def make_hits(draw, size):
    rows = draw(st.permutations(range(size)))[: draw(st.integers(0, size))]
    scores = draw(st.lists(st.sampled_from([-2.0, 0, 0.1, 0.3, 1, 7]), min_size=size))
    return list(zip(rows, sorted(scores, reverse=True), strict=False))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.sampled_from(["ranks", "scores"]))
def test_against_fractions(data, size, by):
    rankings = data.draw(st.lists(make_hits(size), min_size=1, max_size=4))
    weights = tuple(data.draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])) for _ in rankings)
    constant, depth = data.draw(st.sampled_from([0.0, 60.0])), data.draw(st.integers(1, 8))
    k = data.draw(st.integers(1, size))
    searchers = [Fixed(size, hits) for hits in rankings]
    given = FusionConfig(by, depth, constant, weights)
    (scores,), (rows,) = Fused(searchers, given).search(["?"], k)
    read = [hits[: max(depth, k)] for hits in rankings]
    wanted = fuse_slowly(read, by, constant, weights)[:k]
    # Sums are rounded once: of equal ones, and only of those, the row decides.
    assert rows.tolist() == [row for row, _ in wanted]
    np.testing.assert_array_equal(scores, [np.float32(float(value)) for _, value in wanted])
    assert (scores.dtype, rows.dtype) == (np.float32, np.int32)
    pairs = list(zip(searchers, weights, strict=True))[::-1]
    other = FusionConfig(by, depth, constant, tuple(weight for _, weight in pairs))
    again = Fused([searcher for searcher, _ in pairs], other).search(["?"], k)
    np.testing.assert_array_equal(again[1][0], rows)


def test_bm25_and_an_encoder():
    texts = ["oslo fjord", "the capital", "gitega hill", "a town on a hill"]
    vectors = np.eye(4, dtype=np.float32)
    index = Index.build(vectors, backend="exact", encoder="e")
    dense = Dense(index, lambda questions: np.repeat(vectors[2:3] + 0.1, len(questions), 0))
    assert dense.size == 4
    words = BM25.build(texts)
    for by in ("ranks", "scores"):
        _, rows = Fused([words, dense], FusionConfig(by)).search(["hill", "fjord", "?"], 3)
        assert [found.tolist()[0] for found in rows] == [2, 0, 2]
    # What one searcher cannot find the other one finds, and weights decide between them.
    by_words = FusionConfig("scores", weights=(3.0, 1.0))
    by_vectors = FusionConfig("scores", weights=(1.0, 3.0))
    assert Fused([words, dense], by_words).search(["fjord"], 1)[1][0].tolist() == [0]
    assert Fused([words, dense], by_vectors).search(["fjord"], 1)[1][0].tolist() == [2]


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([(4, 1.0)], r"searcher 1 \(Fixed\) found row 4 among 4 passages"),
        ([(-1, 1.0)], r"searcher 1 \(Fixed\) found row -1 among 4 passages"),
        ([(1, 1.0), (1, 0.5)], "found a passage twice, or not the best one first"),
        ([(1, 0.5), (2, 1.0)], "found a passage twice, or not the best one first"),
        ([(1, float("nan"))], "found passages without finite scores, one for each"),
    ],
)
@pytest.mark.parametrize("by", ["ranks", "scores"])
def test_a_searcher_that_breaks_its_promise(hits, message, by):
    fused = Fused([Fixed(4, [(0, 1.0)]), Fixed(4, hits)], FusionConfig(by))
    with pytest.raises(RagJaxError, match=message) as error:
        fused.search(["a"], 2)
    assert "\n" not in str(error.value)


def test_rows_that_are_no_integers():
    class Halves(Fixed):
        def search(self, questions, k):
            scores, rows = super().search(questions, k)
            return scores, [own + 0.5 for own in rows]

    with pytest.raises(RagJaxError, match="found rows that are no integers"):
        Fused([Fixed(4, [(0, 1.0)]), Halves(4, [(1, 1.0)])]).search(["a"], 2)


def test_a_searcher_that_skips_a_question():
    class Short(Fixed):
        def search(self, questions, k):
            return super().search(questions[1:], k)

    fused = Fused([Fixed(4, [(0, 1.0)]), Short(4, [(0, 1.0)])])
    with pytest.raises(RagJaxError, match=r"searcher 1 \(Short\) answered 1 of 2 questions"):
        fused.search(["a", "b"], 2)


def test_bad_settings():
    one = Fixed(4, [])
    for searchers, config, message in [
        ([], FusionConfig(), "searchers are over no passages"),
        ([one, Fixed(5, [])], FusionConfig(), r"searchers are over \[4, 5\] passages: fuse those"),
        ([one, one], FusionConfig(weights=(1.0,)), "must be one for each of 2 searchers, or none"),
        ([one], FusionConfig(by="sum"), "settings.by='sum': must be one of 'ranks', 'scores'"),
        ([one], FusionConfig(weights=(0.0,)), r"settings.weights\[0\]=0.0: must be above 0"),
    ]:
        with pytest.raises(RagJaxError, match=message):
            Fused(searchers, config)
    for k in (0, 5, 1.5):
        with pytest.raises(RagJaxError, match=f"k is {k}: it must be from 1 to 4"):
            Fused([one]).search(["a"], k)
    assert Fused([one]).search([], 2) == ([], [])
    (scores,), (rows,) = Fused([one]).search(["a"], 2)
    assert scores.shape == rows.shape == (0,)
