"""Reranking in a run: the order and its rest, resumption, the table, and what is refused."""

import jax
import numpy as np
import pytest
from tiny_encoders import BERT

from rag_jax.config import MeshConfig, build
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import score_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.sharding import make_mesh
from rag_jax.search_config import RerankConfig, YesNo
from rag_jax.systems import reranking as module
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.reranking import (
    add_ranks,
    describe_reranking,
    keep_scores,
    open_reranking,
    rank_anew,
    rerank_found,
    tabulate_reranking,
)
from systems.reranked import set_reranker

LLAMA = BERT.parent / "llama_tied"
WORDS = ["river", "snow", "bread", "music", "iron", "glass"]
PASSAGES = [Passage(word, "", f"a text about {word}") for word in WORDS]
QUESTIONS = [Question(w, f"what is {w}", (w,), {w: 1}) for w in ("snow", "iron", "glass")]
ASKED = [question.question for question in QUESTIONS]
# Passages and scores, best first; the second question found two, the last none.
FOUND = [[(i, 9.0 - i) for i in range(6)], [(5, 2.0), (3, 1.0)], []]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    flags = set_reranker(tmp_path_factory.mktemp("model"))
    return RerankConfig(**{name.split(".")[-1]: value for name, value in flags.items()})


@pytest.fixture(scope="module")
def reranking(settings, mesh):
    return open_reranking(settings, mesh)


def open_stage(folder):
    context = StageContext(Stage("evaluate", lambda context: None), folder)
    context.folder.mkdir(parents=True)
    return context


def test_passages_beyond_the_depth_follow(reranking):
    ranked = reranking.order(ASKED, FOUND, PASSAGES)
    assert ranked[2] == [] and len(ranked[1]) == 2
    pairs = [(ASKED[0], passage.text) for passage in PASSAGES[:4]]
    scores = score_pairs(reranking.reranker, pairs, max_length=64)
    order = np.argsort(-scores, kind="stable")
    assert [row for row, _ in ranked[0]] == [*order, 4, 5]
    found = [score for _, score in ranked[0]]
    lowest = scores.min()
    np.testing.assert_allclose(found, [*scores[order], lowest - 1, lowest - 2], atol=2e-5)
    assert (reranking.count(3, 6), reranking.count(5, 6), reranking.count(9, 6)) == (4, 5, 6)
    assert reranking.max_length == 64  # as many as the model reads

    ranks = rank_anew(FOUND, ranked)[0]["ranks"]
    assert [place["rank_before"] for place in ranks] == [1 + row for row, _ in ranked[0]]
    assert [place["rank_after"] for place in ranks] == [1, 2, 3, 4, 5, 6]
    assert add_ranks([{"id": "a"}], {"ranks": ranks}) == [{"id": "a", **ranks[0]}]
    assert add_ranks([{"id": "a"}], {}) == [{"id": "a"}]


def test_an_interrupted_reranking_goes_on(reranking, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_TOGETHER", 1)
    wanted, read = reranking.order(ASKED, FOUND, PASSAGES), []

    class Stopped(module.Reranking):
        def order(self, questions, *inputs):
            if len(read) == 2:
                raise KeyboardInterrupt
            read.extend(questions)
            return super().order(questions, *inputs)

    stopped = Stopped(reranking.reranker, reranking.depth, reranking.max_length)
    context = open_stage(tmp_path)
    inputs = ASKED, FOUND, PASSAGES
    with pytest.raises(KeyboardInterrupt):
        rerank_found(context, "words", stopped, *inputs)
    read.clear()
    found = rerank_found(context, "words", stopped, *inputs)
    assert len(read) == 1 and (context.folder / "reranked_words.jsonl").exists()
    for (ranked, seconds), own in zip(found, wanted, strict=True):
        assert [row for row, _ in ranked] == [row for row, _ in own] and seconds >= 0
        np.testing.assert_allclose([s for _, s in ranked], [s for _, s in own], atol=2e-5)


def test_a_table_of_both_orders(tmp_path):
    context = open_stage(tmp_path)
    reranked = [[(1, 2.0), (0, 1.0)], [(3, 1.0), (5, 0.0)], []]
    keep_scores(context, QUESTIONS, {"found": FOUND, "reranked": reranked}, PASSAGES, k=2)
    assert read_json(context.folder / "reranking.json")["found"]["mrr"] == pytest.approx(1 / 6)
    (table,) = tabulate_reranking(context, "evaluate").values()
    assert table[0] == ["passages", "answer@1", "answer@2", "mrr"]
    assert table[1] == ["found", 0.0, pytest.approx(1 / 3), pytest.approx(1 / 6)]
    assert table[2] == ["reranked", *[pytest.approx(1 / 3)] * 3]


def test_a_language_model_is_asked_in_16_bits(mesh):
    question = YesNo("", " ", "", yes="a", no="b")
    settings = RerankConfig(str(LLAMA), dtype="bfloat16", asks=True, question=question)
    opened = open_reranking(settings, mesh).reranker
    assert opened.question == question
    assert {leaf.dtype.name for leaf in jax.tree.leaves(opened.base.params)} == {"bfloat16"}
    assert describe_reranking(settings)["reranker"] == opened.fingerprint


def test_mistakes_are_told(settings, mesh):
    assert describe_reranking(RerankConfig()) == {}
    assert open_reranking(RerankConfig(), mesh) is None
    name = "config.retrieve.rerank.name="
    question, short = YesNo(yes="yes and no"), YesNo("a b c d", " ", "", yes="a", no="b")
    for changes, message in [
        ({"name": str(BERT)}, f"{name}.*a Bert with architectures .* is no reranker"),
        ({"name": "nowhere/at-all"}, name),
        ({"name": str(BERT), "asks": True}, f"{name}.*only a language model can be asked"),
        (
            {"name": str(LLAMA), "asks": True, "question": question},
            f"{name}.*the answer 'yes and no' has . tokens",
        ),
        (
            {"name": str(LLAMA), "asks": True, "question": short, "max_length": 3},
            "config.retrieve.rerank.max_length=3: max_length 3 has no room for a passage",
        ),
        (
            {"name": settings.name, "max_length": 65},
            "config.retrieve.rerank.max_length=65: the reranker reads at most 64 tokens",
        ),
    ]:
        with pytest.raises(RagJaxError, match=message):
            describe_reranking(RerankConfig(**changes))
    for changes, message in [
        ({"depth": 0}, "config.retrieve.rerank.depth=0: must be at least 1"),
        ({"dtype": "int8"}, "config.retrieve.rerank.dtype='int8': must be one of"),
        ({"question": {"yes": "ja"}}, "config.retrieve.rerank.question.yes: only a language model"),
        ({"name": "a", "depth": 200}, "config.retrieve.rerank.depth=200 is above config.depth=100"),
    ]:
        with pytest.raises(RagJaxError, match=message):
            build(DPRConfig, {"retrieve": {"rerank": changes}})
