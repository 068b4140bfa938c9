"""Routers compared along their frontiers, against slow references, one question at a time."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.evaluation import frontier
from rag_jax.evaluation.frontier import Router, compare_routers, measure_router, trace_frontier
from rag_jax.evaluation.pairs import compare_pairs, draw_counts

BITS = st.sampled_from([0.0, 1.0])


@st.composite
def draw_routers(draw, most=6, count=2):
    size = draw(st.integers(1, most))
    shares = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=size, max_size=size)
    bits = st.lists(BITS, min_size=size, max_size=size)
    routers = []
    for _ in range(count):
        internal, external, searched = (np.asarray(draw(bits)) for _ in range(3))
        better = np.asarray(draw(bits)) > 0
        routers.append(Router(np.asarray(draw(shares)), internal, external, better, searched))
    return routers


def measure_slowly(router, numbers, rate):
    """The mean over all orders in which questions of equal scores may be searched."""
    scores, internal, external, better = (np.asarray(x)[numbers] for x in router[:4])
    n, curves = len(numbers), []
    for order in itertools.permutations(range(n)):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            curve = [
                np.mean([external[i] if i in order[:m] else internal[i] for i in range(n)])
                for m in range(n + 1)
            ]
            curves.append(curve)
    curve = np.mean(curves, axis=0)
    area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / n
    pairs = [
        (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
        for i in range(n)
        for j in range(n)
        if better[i] and not better[j]
    ]
    at_rate = np.interp(rate * n, range(n + 1), curve)
    return {
        "accuracy_at_rate": at_rate,
        "auroc": np.mean(pairs) if pairs else np.nan,
        "area": area,
    }


@settings(max_examples=40, deadline=None)
@given(draw_routers(count=1), st.floats(0, 1), st.integers(0, 10**6))
def test_measures_are_expectations_over_ties(routers, rate, seed):
    """On all questions, and on a resample in which some are twice and some are not."""
    (router,) = routers
    size = len(router.scores)
    drawn = np.random.default_rng(seed).integers(0, size, size)
    resamples = [np.arange(size), drawn]
    counts = np.asarray([np.bincount(numbers, minlength=size) for numbers in resamples])
    found = measure_router(router, counts, np.full(2, rate))
    for row, numbers in enumerate(resamples):
        for name, value in measure_slowly(router, numbers, rate).items():
            assert found[name][row] == pytest.approx(value, nan_ok=True)


@given(draw_routers(most=12, count=1))
def test_the_area_is_the_frontiers(routers):
    (router,) = routers
    found = measure_router(router, np.ones((1, len(router.scores)), int), np.zeros(1))
    traced = trace_frontier(router.scores, router.internal, router.external)
    assert found["area"][0] == pytest.approx(traced["area"])
    assert found["accuracy_at_rate"][0] == pytest.approx(router.internal.mean())
    at_one = measure_router(router, np.ones((1, len(router.scores)), int), np.ones(1))
    assert at_one["accuracy_at_rate"][0] == pytest.approx(router.external.mean())


@settings(max_examples=15, deadline=None)
@given(draw_routers(most=5))
def test_intervals_are_of_the_paired_bootstrap(routers):
    """The same resamples, each question written out."""
    ours, theirs = routers
    size = len(ours.scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "RESAMPLES", 25)
        found = compare_routers({"ours": ours, "theirs": theirs}, "ours", seed=3)
    assert found["reference"] == "ours"
    assert found["retrieval_rate"] == pytest.approx(ours.searched.mean())
    differences = {name: [] for name in frontier.MEASURES}
    for counts in draw_counts(size, 25, seed=3):
        for row in counts:
            numbers = np.repeat(np.arange(size), row)
            rate = ours.searched[numbers].mean()
            both = [measure_slowly(router, numbers, rate) for router in (theirs, ours)]
            for name, values in differences.items():
                values.append(both[0][name] - both[1][name])
    whole = [measure_slowly(r, np.arange(size), ours.searched.mean()) for r in (theirs, ours)]
    for name, values in differences.items():
        measure = found["rows"]["theirs"][name]
        difference = whole[0][name] - whole[1][name]
        known = [value for value in values if not np.isnan(value)]
        if np.isnan(difference) or not known:
            assert measure["difference"] is None and measure["ci95"] is None
        else:
            assert measure["difference"] == pytest.approx(difference)
            assert measure["ci95"] == pytest.approx(np.quantile(known, (0.025, 0.975)).tolist())
        assert set(found["rows"]["ours"][name]) == {"value"}


def test_a_router_that_only_searches_more_is_no_better():
    """Its accuracy is higher; at one rate, and by the area, nothing differs."""
    rng = np.random.default_rng(0)
    scores = rng.random(200)
    internal, external = (rng.random(200) < 0.5).astype(float), np.ones(200)
    better = external > internal
    few, many = ((scores > tau).astype(float) for tau in (0.7, 0.2))
    routers = {
        name: Router(scores, internal, external, better, searched)
        for name, searched in (("few", few), ("many", many))
    }
    assert np.where(many, external, internal).mean() > np.where(few, external, internal).mean()
    found = compare_routers(routers, "few")["rows"]
    assert found["few"]["accuracy_at_rate"]["value"] == pytest.approx(
        np.where(few, external, internal).mean()
    )
    for measure in found["many"].values():
        assert measure["difference"] == 0 and measure["ci95"] == [0, 0]


def test_the_interval_of_the_accuracy_is_that_of_pairs():
    """Where both always search, the difference at that rate is the paired difference."""
    rng = np.random.default_rng(1)
    ones, internal = np.ones(300), np.zeros(300)
    theirs, ours = ((rng.random(300) < share).astype(float) for share in (0.6, 0.5))
    routers = {
        name: Router(rng.random(300), internal, external, external > 0, ones)
        for name, external in (("theirs", theirs), ("ours", ours))
    }
    measure = compare_routers(routers, "ours")["rows"]["theirs"]["accuracy_at_rate"]
    pair = compare_pairs(theirs, ours)
    assert measure["difference"] == pytest.approx(pair["difference"])
    assert measure["ci95"] == pytest.approx(pair["ci95"], abs=0.01)


def test_counts_of_resamples():
    drawn = np.concatenate([*draw_counts(7, 50, seed=1)])
    assert drawn.shape == (50, 7) and (drawn.sum(axis=1) == 7).all()
    again = np.concatenate([*draw_counts(7, 50, seed=1)])
    np.testing.assert_array_equal(drawn, again)
