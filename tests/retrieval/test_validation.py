"""DPR's average rank against counting by hand, and the epoch that is kept."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.retrieval.negatives import make_miner
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.retrieval.validation import BestEpoch, average_rank, make_pool
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl

PASSAGES = [Passage(str(row), "", f"text {row}") for row in range(8)]
QUESTIONS = [
    Question("a", "A?", (), {"5": 1, "2": 1}),
    Question("b", "B?", (), {}),
    Question("c", "C?", (), {"3": 1}),
]
NEGATIVES = [[7, 3], [0], [5]]


@given(st.integers(1, 150), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_average_rank_by_counting(questions, passages, seed):
    """The place in DPR's sorted list, which has a passage as often as the pool has it."""
    rng = np.random.default_rng(seed)
    queries = rng.integers(-3, 4, (questions, 3)).astype(np.float32)  # with ties
    candidates = rng.integers(-3, 4, (passages, 3)).astype(np.float32)
    counts, own = rng.integers(1, 4, passages), rng.integers(0, passages, questions)
    ranks = []
    for query, positive in zip(queries, own, strict=True):
        pool = [row for row in range(passages) for _ in range(counts[row])]
        mine = float(query @ candidates[positive])
        scores = sorted((float(query @ candidates[row]) for row in pool), reverse=True)
        others = [row for row in pool if row != positive and float(query @ candidates[row]) == mine]
        ranks.append(scores.index(mine) + len(others) / 2)  # the middle of all orders of equals
    assert average_rank(queries, candidates, counts, own) == pytest.approx(np.mean(ranks))


def test_encoders_that_tell_nothing_apart():
    queries, candidates = np.zeros((2, 3), np.float32), np.ones((4, 3), np.float32)
    counts, own = np.ones(4, int), np.asarray([0, 3])
    assert average_rank(queries, candidates, counts, own) == 1.5
    with pytest.raises(RagJaxError, match="embeddings are not finite"):
        average_rank(queries * np.nan, candidates, counts, own)


def test_the_first_relevant_passage():
    every, first = (
        list_pairs(QUESTIONS, NEGATIVES, PASSAGES, positives=kind) for kind in ("all", "first")
    )
    assert [(pair.id, pair.positive) for pair in every] == [("a", 5), ("a", 2), ("c", 3)]
    assert [(pair.id, pair.positive) for pair in first] == [("a", 5), ("c", 3)]
    assert first[0].relevant == {5, 2}  # the other one is no negative


def test_passages_with_the_text_of_a_relevant_one():
    """They are no negatives, whether named or mined."""
    passages = [
        Passage("twin", "Seine", "It flows through Paris."),
        Passage("5", "Seine", "It flows through Paris."),
        Passage("other", "Rhine", "It flows through Paris."),  # as the title says, another river
        Passage("last", "Rhine", "It flows through Basel."),
    ]
    questions = [Question("a", "What flows through Paris?", (), {"5": 1, "gone": 1})]
    (record,) = make_miner(passages, questions, depth=4, count=3)(questions)
    assert record["rows"] == [2, 3]
    (pair,) = list_pairs(questions, [[0, 2, 1]], passages)
    assert (pair.positive, pair.negatives, pair.relevant) == (1, (2,), {0, 1})


def test_the_pool_has_every_passage_as_often_as_it_is_named():
    pool = make_pool(list_pairs(QUESTIONS, NEGATIVES, PASSAGES, positives="first"), QUESTIONS)
    assert pool.questions == ["A?", "C?"]
    assert pool.rows.tolist() == [3, 5, 7] and pool.counts.tolist() == [2, 2, 1]
    assert pool.rows[pool.positives].tolist() == [5, 3]


def make_tree(epoch):
    return {"weight": jnp.full(3, epoch, jnp.float32)}


def list_trees(folder):
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_the_best_epoch_is_kept(tmp_path):
    """Three steps an epoch, of which the first is not validated."""
    ranks = {2: 5.0, 3: 4.0, 4: 4.0, 5: 6.0}
    measured = []

    def measure(params):
        measured.append(int(params["weight"][0]))
        return ranks[measured[-1]]

    def train(steps):
        hook = BestEpoch(tmp_path, steps=3, after=1, measure=measure)
        return hook, {
            step: hook.after(step, make_tree(step // 3 + 1)) for step in steps if step < 15
        }

    _, logged = train(range(10))  # stopped within the fourth epoch
    assert {step: line for step, line in logged.items() if line} == {
        5: {"average_rank": 5.0},
        8: {"average_rank": 4.0},
    }
    assert list_trees(tmp_path) == ["epoch-3"]
    hook, logged = train(range(6, 15))  # from an earlier checkpoint
    assert logged[8] == {"average_rank": 4.0}
    assert measured == [2, 3, 4, 5]  # none of them twice
    assert hook.best == 3 and list_trees(tmp_path) == ["epoch-3"]
    np.testing.assert_array_equal(hook.load(make_tree(0))["weight"], make_tree(3)["weight"])
    assert [line["epoch"] for line in read_jsonl(tmp_path / "validation.jsonl")] == [2, 3, 4, 5]
    hook.remove()
    assert list_trees(tmp_path) == []


def test_no_epoch_was_validated(tmp_path):
    hook = BestEpoch(tmp_path, steps=3, after=1, measure=lambda params: 0.0)
    assert hook.after(2, make_tree(1)) == {}
    with pytest.raises(RagJaxError, match="validation.jsonl: no epoch was validated"):
        hook.load(make_tree(0))
