"""Paired comparisons against closed forms, scipy, and what does not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rag_jax.evaluation.pairs import compare_pairs, compare_rows, tabulate_pairs
from rag_jax.runtime.errors import RagJaxError


def test_scores_of_zero_and_one_by_hand():
    ours, theirs = np.asarray([1, 1, 0, 1, 1, 0.0]), np.asarray([1, 0, 0, 0, 0, 1.0])
    pair = compare_pairs(ours, theirs)
    assert (pair["n"], pair["better"], pair["worse"]) == (6, 3, 1)
    assert pair["difference"] == pytest.approx(2 / 6)
    # Three of four heads or more extreme, on either side: 2 * (4 + 1) / 16.
    assert (pair["test"], pair["p"]) == ("McNemar", pytest.approx(10 / 16))


def compare_counts(both, better, worse, neither):
    """The comparison of scores of 0 and 1 from the four counts of questions."""
    counts = [both, better, worse, neither]
    return compare_pairs(np.repeat([1.0, 1, 0, 0], counts), np.repeat([1.0, 0, 1, 0], counts))


def test_the_interval_of_scores_of_zero_and_one():
    """The example of `ci.prop.ps` in the R package statpsych, by the authors of the interval."""
    pair = compare_counts(6, 26, 4, 12)
    assert pair["ci95"] == pytest.approx((0.2548067, 0.6251933), abs=1e-6)


@pytest.mark.parametrize("share", [0, 0.02, 0.3])
def test_the_interval_has_the_difference_as_often_as_it_says(share):
    """The true difference is 0.05; `share` of the questions more are better as often as worse."""
    chances = np.asarray([share / 2 + 0.05, share / 2, 0.95 - share])
    drawn = np.random.default_rng(0).multinomial(100, chances, 1000)
    covered = 0
    outcomes = np.unique(drawn, axis=0, return_counts=True)
    for (better, worse, same), times in zip(*outcomes, strict=True):
        low, high = compare_counts(same, better, worse, 0)["ci95"]
        covered += times * (low <= 0.05 <= high)
    assert 930 <= covered <= 985


def test_the_interval_is_that_of_the_binomial_number():
    """Of 200 questions 60 are half a point better: the bootstrap's mean is a binomial's."""
    pair = compare_pairs(np.repeat([0.5, 0.0], [60, 140]), np.zeros(200))
    wanted = stats.binom.ppf((0.025, 0.975), 200, 0.3) / 400
    np.testing.assert_allclose(pair["ci95"], wanted, atol=0.0026)  # a question is 0.0025
    assert pair["p"] == pytest.approx(1 / 10_001)
    assert compare_counts(0, 60, 0, 140)["p"] == pytest.approx(2 * 0.5**60)


def test_graded_scores_against_scipy():
    rng = np.random.default_rng(1)
    ours = rng.choice([0, 0.25, 0.5, 1], 80)
    theirs = np.clip(ours - rng.choice([0, 0, 0, 0.25, -0.25, 0.5], 80), 0, 1)
    pair = compare_pairs(ours, theirs)

    def mean(x, y, axis):
        return (x - y).mean(axis=axis)

    options = {"permutation_type": "samples", "vectorized": True, "rng": 0, "n_resamples": 20_000}
    tested = stats.permutation_test((ours, theirs), mean, **options)
    boot = stats.bootstrap((ours - theirs,), np.mean, method="percentile", rng=0)
    assert pair["test"] == "permutation"
    assert pair["p"] == pytest.approx(tested.pvalue, abs=0.015)
    np.testing.assert_allclose(pair["ci95"], boot.confidence_interval, atol=0.01)


def test_signs_of_zero_and_one_are_mcnemars():
    """The permutation test of halves is McNemar's test of ones."""
    ours, theirs = np.repeat([1.0, 0.0], [14, 6]), np.repeat([0.0, 1.0], [14, 6])
    halves = compare_pairs(ours / 2, theirs / 2)
    assert halves["test"] == "permutation"
    assert halves["p"] == pytest.approx(compare_pairs(ours, theirs)["p"], abs=0.015)


def test_many_different_values():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(1000) + 0.2, rng.random(1000)
    pair = compare_pairs(ours, theirs)
    low, high = pair["ci95"]
    assert low < pair["difference"] < high
    width = 2 * 1.96 * (ours - theirs).std() / 1000**0.5
    assert high - low == pytest.approx(width, rel=0.05)
    assert pair["p"] == pytest.approx(1 / 10_001)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 1.0)]), min_size=1))
def test_a_pair_turned_round(pairs):
    ours, theirs = np.asarray(pairs).T
    pair, turned = compare_pairs(ours, theirs), compare_pairs(theirs, ours)
    assert pair == compare_pairs(ours, theirs)  # the seed is fixed
    assert 0 < pair["p"] <= 1 and pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
    assert turned["difference"] == -pair["difference"]
    assert (turned["better"], turned["worse"]) == (pair["worse"], pair["better"])
    assert turned["p"] == pytest.approx(pair["p"], abs=0.03)
    low, high = pair["ci95"]
    if pair["test"] == "McNemar":
        assert turned["ci95"] == pytest.approx((-high, -low)) and low < high
    if pair["better"] == pair["worse"] == 0:
        assert pair["p"] == 1 and low == pytest.approx(-high)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], []), ([1.0], [1.0, 0.0]), ([np.nan], [0.0]), ([1.0], [np.inf])]
)
def test_scores_that_are_no_pairs(ours, theirs):
    with pytest.raises(RagJaxError, match="^scores: "):
        compare_pairs(np.asarray(ours), np.asarray(theirs))


def make_records(scores, **more):
    return [{"id": str(i), "correct": score, **more} for i, score in enumerate(scores)]


def test_every_row_is_compared_with_the_reference():
    predictions = {
        "direct": make_records([0, 0, 1, 0]),
        "method": [*make_records([1, 1, 1], mrr=0.5), {"id": "3", "correct": 0}],
        "other": make_records([1, 1, 1, 0], mrr=1.0),
    }
    paired = compare_rows(predictions, "method", {"accuracy": "correct", "MRR": "mrr"})
    assert paired["reference"] == "method"
    assert list(paired["rows"]) == ["direct", "other"]
    assert list(paired["rows"]["direct"]) == ["accuracy"]  # it has no other score
    assert paired["rows"]["direct"]["accuracy"]["difference"] == -0.5
    assert paired["rows"]["other"]["MRR"]["n"] == 3  # where both have it
    assert compare_rows({"method": predictions["method"]}, "method", {})["rows"] == {}

    table = tabulate_pairs(paired)
    assert table[0][:3] == ["against method", "score", "difference"]
    assert [row[:3] for row in table[1:]] == [
        ["direct", "accuracy", "-0.500"],
        ["other", "accuracy", "+0.000"],
        ["other", "MRR", "+0.500"],
    ]
    assert {len(row) for row in table} == {8}
    assert table[1][4:] == ["0", "2", "0.500", "McNemar"]


def test_methods_with_other_questions_are_not_compared():
    predictions = {"a": make_records([1, 0]), "b": make_records([1, 0])[::-1]}
    with pytest.raises(RagJaxError, match="b and a: answer other questions; run both again"):
        compare_rows(predictions, "a", {"accuracy": "correct"})


def test_a_small_p_is_not_shown_as_zero():
    pair = compare_pairs(np.ones(50), np.zeros(50))
    paired = {"reference": "a", "rows": {"b": {"hits@1": pair}}}
    assert tabulate_pairs(paired)[1] == [
        "b",
        "hits@1",
        "+1.000",
        "+0.887 to +1.000",
        "50",
        "0",
        "< 0.001",
        "McNemar",
    ]
