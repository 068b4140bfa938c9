"""Rankings' metrics against ir_measures, and DPR's has_answer on cases worked out by hand."""

import ast
import itertools
import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG

from rag_jax.data.formats.beir import read_questions
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.matching import has_answer, split_tokens
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import (
    answer_hits,
    check_run,
    ndcg,
    rank_hits,
    read_run,
    recall,
    reciprocal_rank,
    write_run,
)
from rag_jax.runtime.errors import RagJaxError


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
        ("東京は首都", ["東京"], True),  # each character is a token, unlike DPR's run of letters
        ("東京は首都", ["京東"], False),
        ("ノルウェーのオスロ", ["オスロ", "ベルゲン"], True),
        ("กีโตเป็นเมืองหลวงของเอกวาดอร์", ["เอกวาดอร์"], True),
        ("오슬로는 수도", ["오슬로"], False),  # Korean has spaces
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


THEIRS = {str(m): m for m in (RR, nDCG @ 10, R @ 2, Success @ 1, RR @ 5)}


def measure(run, qrels, names=tuple(THEIRS)):
    """ir_measures' numbers by measure and question."""
    parsed = [THEIRS[name] for name in names]
    pairs = [(q, *grade) for q, grades in qrels.items() for grade in grades.items()]
    judgements = [ir_measures.Qrel(*pair) for pair in pairs]
    found = ir_measures.iter_calc(parsed, judgements, run)
    return {(m.query_id, str(m.measure)): m.value for m in found}


MEASURES = {"rr": "RR", "ndcg": "nDCG@10", "recall": "R@2", "first": "Success@1", "rr5": "RR@5"}


def rate(hits, relevant):
    ids = [id for id, _ in hits]
    return {
        "rr": reciprocal_rank(ids, relevant),
        "ndcg": ndcg(ids, relevant, 10),
        "recall": recall(ids, relevant, 2),
        "first": float(any(id in relevant for id in ids[:1])),
        "rr5": reciprocal_rank(ids[:5], relevant),
    }


IDS = ["d1", "d9", "d10", "D2", "a b", "a%20b", "\u00e9", "z", "\U0001f600", "\uff5e", "d 1"]
SCORES = st.sampled_from([2.5, 1.0, 1.0 + 1e-7, 0.0, -1.0, 1e-45, 3e38]).map(
    lambda score: float(np.float32(score))
)


@settings(max_examples=80, deadline=None)
@given(
    found=st.dictionaries(st.sampled_from(IDS), SCORES),
    relevant=st.dictionaries(st.sampled_from(IDS), st.integers(1, 3), min_size=1),
)
def test_ties_are_ranked_as_trec_eval_ranks_them(found, relevant, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.trec"
    question = Question("a question", "?", (), relevant)
    hits = sorted(found.items(), key=lambda hit: -hit[1])
    ranked = rank_hits(question, hits, str)
    numbers = rate(ranked, relevant)
    # As trec_eval orders the scores as they are: its ids are those of the run file.
    written = {id: id.replace("a%20b", "a%2520b").replace(" ", "%20") for id in IDS}
    qrels = {"a%20question": {written[id]: grade for id, grade in relevant.items()}}
    run = [ir_measures.ScoredDoc("a%20question", written[id], s) for id, s in hits]
    theirs = measure(run, qrels, ("RR", "nDCG@10", "R@2", "Success@1"))
    for (_, name), value in theirs.items():
        ours = next(field for field, measure in MEASURES.items() if measure == name)
        assert numbers[ours] == pytest.approx(value, abs=1e-9), name
    # And on the file, where tools that order ties in other ways agree too.
    write_run(path, "method", [question.id], [ranked])
    read = measure(ir_measures.read_trec_run(str(path)), qrels)
    for field, name in MEASURES.items():
        assert numbers[field] == pytest.approx(read["a%20question", name], abs=1e-9), name
    check_run(path, [question], [numbers], MEASURES)


def test_order_of_ties_by_hand():
    question = Question("q", "?", (), {"d1": 1})
    hits = [("d1", 2.0), ("d9", 2.0), ("d5", 2.0), ("d3", 3.0)]
    assert rank_hits(question, hits, str) == [("d3", 3.0), ("d9", 2.0), ("d5", 2.0), ("d1", 2.0)]
    assert [id for id, _ in rank_hits(question, hits, str, depth=2)] == ["d9", "d1"]
    assert rank_hits(question, [*hits, ("d1", 1.0)], str) == rank_hits(question, hits, str)
    assert rank_hits(question, [], str) == []


def test_the_question_itself_is_left_out_of_its_ranking():
    """As in ArguAna and Quora, whose queries are documents; BEIR's evaluation does the same."""
    hits = [("t1", 3.0), ("t2", 2.0), ("t3", 1.0)]
    argument = Question("t1", "zoos protect animals", (), {"t2": 1})
    assert rank_hits(argument, hits, str, depth=2) == hits[1:]
    # Judged relevant, or in data without judgements, an equal id is a coincidence.
    for relevant in ({"t1": 1}, {}):
        other = Question("t1", "zoos protect animals", ("x",), relevant)
        assert rank_hits(other, hits, str) == hits


def test_scores_in_a_run_fall_strictly_by_the_smallest_steps(tmp_path):
    path = tmp_path / "run.trec"
    ranked = [[("a", 2.5), ("b", 2.5), ("c", 2.5), ("d", 0.0), ("e", 0.0), ("f", -1e-45)], []]
    write_run(path, "m", ["q", "r"], ranked)
    scores = [score for _, score in read_run(path)["q"]]
    step = float(np.spacing(np.float32(2.4)))
    assert scores[0] == 2.5 and scores[3] == 0
    np.testing.assert_allclose(scores[:3], [2.5, 2.5 - step, 2.5 - 2 * step], rtol=1e-8)
    assert all(one > other for one, other in itertools.pairwise(scores))
    assert [id for id, _ in read_run(path)["q"]] == list("abcdef")


def test_a_run_refuses_what_no_tool_reads_alike(tmp_path):
    path = tmp_path / "run.trec"
    with pytest.raises(RagJaxError, match="run.trec: question 'q' is there twice"):
        write_run(path, "m", ["q", "q"], [[], []])
    with pytest.raises(RagJaxError, match="question 'q': passage 'a' is there twice"):
        write_run(path, "m", ["q"], [[("a", 2.0), ("a", 1.0)]])
    for wrong in ([("a", 1.0), ("b", 2.0)], [("a", 1.0), ("b", 1.5), ("c", 0.0)]):
        with pytest.raises(ValueError, match="must fall"):
            write_run(path, "m", ["q"], [wrong])
    for score in (math.nan, math.inf, -math.inf, 1e39):
        with pytest.raises(RagJaxError, match="no finite number of float32"):
            write_run(path, "m", ["q"], [[("a", score)]])
    with pytest.raises(RagJaxError, match="question 'q': passage is empty"):
        write_run(path, "m", ["q"], [[("", 1.0)]])
    assert not path.exists()


def test_a_run_with_a_mark_of_its_encoding(tmp_path):
    (tmp_path / "run.trec").write_bytes(b"\xef\xbb\xbfq Q0 a 1 2.0 m\nq Q0 b 2 1.0 m\n")
    assert read_run(tmp_path / "run.trec") == {"q": [("a", 2.0), ("b", 1.0)]}


def test_ids_of_other_tools_runs_stay_as_they_are(tmp_path):
    names = ["<dbpedia:Who%27s_Who>", "a%E9b", "100%", "a%20b%27"]
    lines = [f"q%C3%A9 Q0 {name} 1 {-i} pyserini\n" for i, name in enumerate(names)]
    (tmp_path / "run.trec").write_text("".join(lines))
    found = read_run(tmp_path / "run.trec")
    assert [name for name, _ in found["q%C3%A9"]] == names


def test_a_report_that_differs_from_its_run_is_refused(tmp_path):
    path = tmp_path / "run.trec"
    questions = [Question("q 1", "?", (), {"b": 1}), Question("q2", "?", ("x",), {})]
    write_run(path, "m", ["q 1", "q2"], [[("a", 2.0), ("b", 1.0)], [("a", 1.0)]])
    check_run(path, questions, [{"mrr": 0.5 + 1e-8}, {}], {"mrr": "RR"})
    wanted = "run.trec: question 'q 1': mrr is 0.501, but ir_measures reads RR = 0.5"
    with pytest.raises(RagJaxError, match=wanted):
        check_run(path, questions, [{"mrr": 0.501}, {}], {"mrr": "RR"})
    with pytest.raises(RagJaxError, match="mrr is nan"):
        check_run(path, questions, [{"mrr": float("nan")}, {}], {"mrr": "RR"})
    check_run(path, questions[1:], [{}], {"mrr": "RR"})  # nothing is judged
    # A question for which nothing is found counts.
    write_run(path, "m", ["q 1", "q2"], [[], [("a", 1.0)]])
    check_run(path, questions, [{"mrr": 0.0}, {}], {"mrr": "RR"})
    with pytest.raises(RagJaxError, match="ir_measures reads RR = 0"):
        check_run(path, questions, [{"mrr": 1.0}, {}], {"mrr": "RR"})


def test_a_cutoff_is_read_without_classes_that_newer_pythons_lack(tmp_path, monkeypatch):
    monkeypatch.setitem(vars(ast), "Num", None)  # gone from 3.14, and a warning before
    path, question = tmp_path / "run.trec", Question("q", "?", (), {"b": 1})
    write_run(path, "m", ["q"], [[("a", 2.0), ("b", 1.0)]])
    check_run(path, [question], [{"first": 0.0, "two": 1.0}], {"first": "R@1", "two": "Success@2"})


def test_a_passage_that_is_ranked_twice_counts_once():
    relevant = {"a": 2, "b": 1, "c": 0, "d": -1}
    twice, once = ["c", "a", "a", "b", "a"], ["c", "a", "b"]
    for score in (reciprocal_rank, lambda *x: recall(*x, 2), lambda *x: ndcg(*x, 3)):
        assert score(twice, relevant) == score(once, relevant) <= 1
    assert reciprocal_rank(["c", "d", "b"], relevant) == pytest.approx(1 / 3)  # grades above 0
    assert recall(["c", "d", "b"], relevant, 3) == 1 / 2
    assert ndcg(["d"], relevant, 3) == 0


def test_a_judgement_given_twice(tmp_path):
    """trec_eval refuses it; here the same grade is harmless, and another one a bad line."""
    path = tmp_path / "test.tsv"
    queries, passages = {"q": "what?"}, {"a", "b"}

    def read(*lines, bad=0):
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(line + "\n" for line in lines))
        (item,) = read_questions(path, queries, passages, BadLines(bad))
        return item.question.relevant

    assert read("q\ta\t2", "q\ta\t2", "q\tb\t0", "q\tb\t0") == {"a": 2}
    for lines in (("q\ta\t2", "q\ta\t0"), ("q\ta\t0", "q\ta\t2"), ("q\ta\t1", "q\ta\t2")):
        with pytest.raises(RagJaxError, match="test.tsv:3: passage 'a' of query 'q' has grade"):
            read(*lines)
    assert read("q\ta\t2", "q\ta\t0", "q\tb\t1", bad=1) == {"a": 2, "b": 1}


@pytest.mark.parametrize("score", ["9" * 400, "nan", "inf", "0x1", "1e999"])
def test_a_score_that_is_no_number(tmp_path, score):
    (tmp_path / "a.run").write_text(f"q Q0 a 1 {score} me\n")
    with pytest.raises(RagJaxError, match=r"a\.run:1: must be question, Q0, passage, rank, score"):
        read_run(tmp_path / "a.run")
