"""Rankings' metrics against ir_measures, and DPR's has_answer on cases worked out by hand."""

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, nDCG

from rag_jax.data.matching import has_answer, split_tokens
from rag_jax.evaluation.rankings import answer_hits, ndcg, recall, reciprocal_rank


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("The capital is Gitega.", ["gitega"], True),
        ("Nigeria lies in Africa", ["Niger"], False),
        ("Niger's capital", ["Niger"], True),
        ("São Paulo (Brazil)", ["Sa\u0303o PAULO"], True),  # composed or not
        ("Sao Paulo", ["São Paulo"], False),  # marks count
        ("It costs $12.", ["$12"], True),
        ("It costs $12.50.", ["$12"], True),
        ("It costs $120.", ["$12"], False),
        ("New York, New Jersey", ["York New"], False),  # the comma is a token
        ("New York New Jersey", ["York New"], True),
        ("one two\u200b\nthree", ["two three"], True),  # white space and the invisible are none
        ("東京は首都", ["東京"], False),  # a run of letters is one token
        ("anything", ["", " "], False),
        ("anything", [], False),
        ("", ["x"], False),
        ("first or second", ["third", "second"], True),
    ],
)
def test_has_answer(text, answers, found):
    assert has_answer(text, answers) is found


def test_tokens():
    assert split_tokens("It's 2,138.5 m²_x") == " it ' s 2 , 138 . 5 m² _ x "


def test_against_ir_measures():
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(30)]
    measures = [nDCG @ 10, nDCG @ 3, RR, R @ 5, R @ 20]
    for case in range(40):
        size = rng.integers(1, 8)
        relevant = {id: int(rng.integers(1, 4)) for id in rng.choice(ids, size, replace=False)}
        ranked = rng.permutation(ids)[: rng.integers(1, 31)].tolist()
        run = {"q": {id: float(-rank) for rank, id in enumerate(ranked)}}
        theirs = ir_measures.calc_aggregate(measures, {"q": relevant}, run)
        ours = [
            ndcg(ranked, relevant, 10),
            ndcg(ranked, relevant, 3),
            reciprocal_rank(ranked, relevant),
            recall(ranked, relevant, 5),
            recall(ranked, relevant, 20),
        ]
        np.testing.assert_allclose(ours, [theirs[m] for m in measures], atol=1e-12, err_msg=case)


def test_answer_hits_by_depth():
    texts = ["Oslo lies in Norway.", "Gitega is in Burundi.", "Burundi lies in Africa."]
    assert answer_hits(texts, ["Burundi"], (1, 2, 5)) == {
        "answer@1": 0.0,
        "answer@2": 1.0,
        "answer@5": 1.0,
    }
    assert answer_hits(texts, ["Africa"], (1, 2)) == {"answer@1": 0.0, "answer@2": 0.0}
    assert answer_hits([], ["Africa"], (1,)) == {"answer@1": 0.0}
