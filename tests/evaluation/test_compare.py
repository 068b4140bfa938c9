"""Methods compared on the same questions: files, their order, seconds and TREC runs."""

import pytest

from rag_jax.data.questions import Question
from rag_jax.evaluation import compare as comparing
from rag_jax.evaluation.compare import Method, compare, mean_numbers, timed
from rag_jax.evaluation.rankings import read_run
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl

QUESTIONS = [Question(f"q{i}", f"Question {i}?", (str(i),), {f"p{i}": 1}) for i in range(3)]


def grade(question, record):
    return {"id": question.id, **record, "correct": float(record["text"] in question.answers)}


def give(texts):
    """An `answer` with these texts."""
    return lambda: [{"text": text, "seconds": 0.5} for text in texts]


def test_a_graded_file_for_each_method(tmp_path):
    compare(
        [Method("first", give("012")), Method("second", give("x1y"))], QUESTIONS, grade, tmp_path
    )
    assert {path.name for path in tmp_path.iterdir()} == {"first.jsonl", "second.jsonl"}
    assert read_jsonl(tmp_path / "first.jsonl") == [
        {"id": f"q{i}", "text": str(i), "seconds": 0.5, "correct": 1.0} for i in range(3)
    ]
    second = read_jsonl(tmp_path / "second.jsonl")
    assert [record["id"] for record in second] == ["q0", "q1", "q2"]
    assert [record["text"] for record in second] == ["x", "1", "y"]
    assert [record["correct"] for record in second] == [0.0, 1.0, 0.0]


def test_methods_answer_in_their_order_each_after_the_file_before(tmp_path):
    calls = []

    def note(name):
        calls.append((name, sorted(path.name for path in tmp_path.iterdir())))
        return give("012")()

    methods = [Method(name, lambda name=name: note(name)) for name in "bac"]
    compare(methods, QUESTIONS, grade, tmp_path)
    files = ["a.jsonl", "b.jsonl"]
    assert calls == [("b", []), ("a", ["b.jsonl"]), ("c", files)]


def test_methods_may_share_one_pass(tmp_path):
    passes = []

    def answer_both():
        if not passes:
            passes.append({"one": give("012")(), "two": give("xyz")()})
        return passes[0]

    methods = [Method(name, lambda name=name: answer_both()[name]) for name in ("one", "two")]
    compare(methods, QUESTIONS, grade, tmp_path)
    assert len(passes) == 1
    assert [r["text"] for r in read_jsonl(tmp_path / "one.jsonl")] == ["0", "1", "2"]
    assert [r["text"] for r in read_jsonl(tmp_path / "two.jsonl")] == ["x", "y", "z"]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_answers_is_a_fault(tmp_path, count):
    with pytest.raises(ValueError):
        compare([Method("one", give("012345"[:count]))], QUESTIONS, grade, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rankings_are_a_trec_run(tmp_path):
    ranked = [[("p0", 2.5), ("a b", 1.0)], [("p2", 0.25)], []]
    compare([Method("dense", give("012"), lambda: ranked)], QUESTIONS, grade, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"dense.jsonl", "dense.trec"}
    assert (tmp_path / "dense.trec").read_text("utf-8") == (
        "q0 Q0 p0 1 2.5 dense\nq0 Q0 a%20b 2 1 dense\nq1 Q0 p2 1 0.25 dense\n"
    )
    assert read_run(tmp_path / "dense.trec") == {"q0": ranked[0], "q1": ranked[1]}


def test_a_ranking_is_compared_with_what_ir_measures_gives(tmp_path):
    ranked = [[("p1", 2.0), ("p0", 1.0)], [], [("p2", 1.0)]]
    wanted = [0.5, 0.0, 1.0]

    def rate(question, record):
        return {"id": question.id, "mrr": record["mrr"]}

    def give_ranks(values):
        return lambda: [{"mrr": value} for value in values]

    method = Method("dense", give_ranks(wanted), lambda: ranked, {"mrr": "RR"})
    compare([method], QUESTIONS, rate, tmp_path)
    method = Method("dense", give_ranks([0.5, 1.0, 1.0]), lambda: ranked, {"mrr": "RR"})
    with pytest.raises(RagJaxError, match="dense.trec: question 'q1': mrr is 1, but"):
        compare([method], QUESTIONS, rate, tmp_path)


def test_seconds_are_each_records_share_of_its_batch(tmp_path, monkeypatch):
    class Clock:
        """A batch takes 6 seconds, compiling left out."""

        def read(self):
            return 6.0

    monkeypatch.setattr(comparing, "Clock", Clock)
    batches = []

    def run(batch):
        batches.append(batch)
        return [{"text": item} for item in batch]

    answer = timed(run)
    assert answer("01") == [{"text": "0", "seconds": 3.0}, {"text": "1", "seconds": 3.0}]
    assert answer("2") == [{"text": "2", "seconds": 6.0}]
    assert batches == ["01", "2"]
    compare([Method("timed", lambda: answer("01") + answer("2"))], QUESTIONS, grade, tmp_path)
    assert [r["seconds"] for r in read_jsonl(tmp_path / "timed.jsonl")] == [3.0, 3.0, 6.0]


def test_seconds_are_measured():
    (record,) = timed(lambda batch: [{"text": "a", "seconds": -1.0}])(["one"])
    assert 0 <= record["seconds"] < 1 and record["text"] == "a"


def test_means_are_over_the_rows_that_have_the_number():
    rows = [{"a": 1.0, "b": 2}, {"a": 0.0}, {"a": 0.5, "c": None}]
    means = mean_numbers(rows, ("b", "a", "d"))
    assert means == {"b": 2.0, "a": 0.5}
    assert list(means) == ["b", "a"]
    assert mean_numbers([], ("a",)) == {}
