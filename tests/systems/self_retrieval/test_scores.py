"""Scores worked out by hand (Tang et al. 2024, section 3.4)."""

import math

import pytest

from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.scores import (
    Candidate,
    score,
    score_unassessed,
    to_probability,
)

GROUPS = [
    [Candidate([0], 0.5, -1.0, 0.2), Candidate([1], 0.5, -2.0, 0.6)],
    [Candidate([2], 0.1, -0.5, 0.9)],
]


def e(x):
    return math.exp(x / 0.4)


def test_within_titles():
    titles = [e(0.5) / (e(0.5) + e(0.1)), e(0.1) / (e(0.5) + e(0.1))]
    first, second = e(0.8) / (e(0.8) + e(0.4)), e(0.4) / (e(0.8) + e(0.4))
    found = score(GROUPS, SearchConfig())
    assert found[0] == pytest.approx([titles[0] * first, titles[0] * second])
    assert found[1] == pytest.approx([titles[1]])


def test_over_all():
    titles = [e(0.5) / (e(0.5) + e(0.1)), e(0.1) / (e(0.5) + e(0.1))]
    total = e(0.8) + e(0.4) + e(0.1)
    found = score(GROUPS, SearchConfig(over="all"))
    assert found[0] == pytest.approx([titles[0] * e(0.8) / total, titles[0] * e(0.4) / total])
    assert found[1] == pytest.approx([titles[1] * e(0.1) / total])


def test_without_assessment_the_passages_own_probabilities_count():
    titles = e(0.5) / (e(0.5) + e(0.1))
    first = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    found = score_unassessed(GROUPS, SearchConfig())
    assert found[0] == pytest.approx([titles * first, titles * (1 - first)])


def test_without_assessment_a_titles_only_passage_is_beyond_doubt():
    """The trie ends within such a title: no token of the passage is left to generate."""
    groups = [GROUPS[0], [Candidate([2], 0.1, 0.0, 0.9)]]
    other = e(0.1) / (e(0.5) + e(0.1))
    assert score_unassessed(groups, SearchConfig())[1] == pytest.approx([other])
    total = math.exp(-1) + math.exp(-2) + 1
    found = score_unassessed(groups, SearchConfig(over="all"))
    assert found[1] == pytest.approx([other / total])
    assert found[0][0] == pytest.approx((1 - other) * math.exp(-1) / total)


def test_probabilities():
    assert to_probability(-6.0, 3, SearchConfig()) == pytest.approx(math.exp(-6))
    assert to_probability(-6.0, 3, SearchConfig(lengths="mean")) == pytest.approx(math.exp(-2))
    assert to_probability(0.0, 0, SearchConfig(lengths="mean")) == 1
