"""The grades of a ranking: ties, hits of nothing, and queries that are passages."""

import pytest

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.retrieval import BM25
from rag_jax.systems.dpr.evaluate import score_ranking, summarize
from rag_jax.systems.stages import list_ranked


def search(passages, questions):
    """Graded records of BM25's rankings of all passages."""
    found = BM25.build([p.text for p in passages]).search(
        [question.question for question in questions], len(passages)
    )
    return [
        score_ranking(question, {"found": [(passages[row], score) for row, score in pairs]})
        for question, pairs in zip(questions, list_ranked(*found), strict=True)
    ]


def test_ties_and_a_search_that_finds_nothing():
    texts = {"d1": "red car", "d9": "red car", "d5": "red car", "d3": "blue boat", "d2": "hat"}
    passages = [Passage(id, "", text) for id, text in texts.items()]
    ties, nothing = search(
        passages,
        [Question("ties", "red car", (), {"d1": 1}), Question("none", "cow", (), {"d1": 1})],
    )
    assert [p["id"] for p in ties["passages"]] == ["d9", "d5", "d1"]  # as trec_eval orders them
    assert (ties["mrr"], ties["passage@1"]) == (pytest.approx(1 / 3), 0)
    assert nothing["passages"] == []
    assert nothing["mrr"] == nothing["ndcg@10"] == nothing["recall@100"] == 0


def test_arguments_do_not_find_themselves():
    """BEIR's ArguAna: the query is a passage, and its counterargument is relevant."""
    texts = {
        "pro01": "uniforms make pupils equal and save money",
        "con01": "uniforms limit how pupils can be equal",
        "pro02": "zoos protect rare animals",
        "con02": "animals in zoos suffer",
    }
    passages = [Passage(id, "", text) for id, text in texts.items()]
    questions = [Question(f"pro{i}", texts[f"pro{i}"], (), {f"con{i}": 1}) for i in ("01", "02")]
    records = search(passages, questions)
    assert [record["passages"][0]["id"] for record in records] == ["con01", "con02"]
    assert summarize(records)["ndcg@10"] == summarize(records)["mrr"] == 1
