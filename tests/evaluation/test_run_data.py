"""The data of a run's page: from predictions, corpus and logs, cut to what a page has room for."""

import json

import numpy as np
import pytest

from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, Question, store_questions
from rag_jax.evaluation.curves import read_curves, thin_out
from rag_jax.evaluation.run_data import collect_run, read_predictions, read_run
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json, write_jsonl


def describe_stage(name):
    numbers = {"seconds": 1.0, "compile_seconds": 0.5, "peak_bytes": 9, "reused": False}
    return {"name": name, **numbers}


REPORT = {
    "system": "rag",
    "config": {"sources": [{"name": "Self"}, {"name": "Wiki"}]},
    "model": "m",
    "dataset": "d",
    "methods": {"first": {"n": 2, "accuracy": 0.5}, "second": {"n": 2, "accuracy": 1.0}},
    "columns": ["n", "accuracy"],
    "scores": {"accuracy": "correct"},
    "figures": {},
    "tables": {},
    "stages": [describe_stage("corpus")],
    "environment": {"cpus": 2},
}


def make_rows(**more):
    asked = {"a": "Where is Riga?", "b": "Where is Oslo?"}
    return [
        {"id": id, "question": text, "answers": ["x"], "prediction": "p", "correct": 1.0, **more}
        for id, text in asked.items()
    ]


def write_corpus(folder, texts, questions=()):
    folder.mkdir(parents=True)
    write_passages(folder / PASSAGES, (Passage(id, f"t{id}", text) for id, text in texts.items()))
    store_questions(folder, {"test": list(questions)})


def test_every_system_s_records_are_columns(tmp_path):
    known = Question("a", "Where is Riga?", ("x",), {"7": 1, "3": 0}, "place", 1000)
    other = Question("a", "Another split's", ("x",), {}, "wrong", 1)
    write_corpus(tmp_path / "stages" / "corpus", {"7": "seven", "8": "eight"}, [other, known])
    first = make_rows(source="Wiki", probabilities=[0.123456789, 0.5], knowledge="k", seconds=1 / 3)
    first[0]["passages"] = [
        {"id": "8", "score": 1.23456789},
        {"id": "7", "score": 1, "text": "own"},
    ]
    first[1] |= {"source": None, "knowledge": ""}
    second = make_rows(passages=["7"], adapters=["8", "7"], cut_off=True)
    second[0]["retrieved"] = [{"id": "7", "rank_before": 4, "rank_after": 1}]
    del second[1]
    run = collect_run(REPORT, {"first": first, "second": second}, tmp_path)
    assert run["questions"] == {
        "id": ["a", "b"],
        "question": ["Where is Riga?", "Where is Oslo?"],
        "answers": [["x"], ["x"]],
        "dataset": ["", ""],
        "type": ["place", ""],
        "popularity": [1000, None],
        "third": ["head", ""],
        "relevant": [[1], []],
    }
    assert run["methods"]["first"] == {
        "prediction": ["p", "p"],
        "source": ["Wiki", None],
        "probabilities": [[0.12346, 0.5], [0.12346, 0.5]],
        "knowledge": [0, None],
        "passages": [[[0, 1.2346], [1, 1.0]], []],
        "numbers": {"correct": [1, 1], "seconds": [0.33333, 0.33333]},
    }
    assert run["methods"]["second"]["passages"] == [[[1, None, 4]], []]
    assert run["methods"]["second"]["adapters"] == [[0, 1], []]
    assert run["methods"]["second"]["numbers"] == {"correct": [1, None], "cut_off": [1, None]}
    assert run["passages"] == [["8", "t8", "eight"], ["7", "", "own"]]
    assert (run["texts"], run["sources"], run["cuts"]) == (["k"], ["Self", "Wiki"], [])
    assert run["tables"]["methods"] == [
        ["method", "n", "accuracy"],
        ["first", "2", "0.500"],
        ["second", "2", "1.000"],
    ]
    json.dumps(run, allow_nan=False)


def test_a_page_has_room_for_the_first_ranks_first(tmp_path):
    write_corpus(tmp_path / "stages" / "corpus", {str(n): "x" * 900 for n in range(6)})
    rows = make_rows(knowledge="k" * 5000)
    rows[0]["passages"], rows[1]["passages"] = ["0", "1", "2"], ["3", "4", "5"]
    run = collect_run(REPORT, {"first": rows}, tmp_path, room=4 * 602)
    text = "x" * 600 + "… (300 more characters)"
    shown = {id: text for id, _, text in run["passages"]}
    assert shown == {"0": text, "3": text, "1": text, "4": text, "2": None, "5": None}
    assert run["texts"] == ["k" * 1200 + "… (3,800 more characters)"]
    assert run["cuts"] == [
        "4 passages are cut after 600 characters.",
        "2 of 6 passages are without text: the page has no room for more.",
        "2 long texts are cut where an ellipsis says so.",
    ]
    nothing = collect_run(REPORT, {"first": rows}, tmp_path / "elsewhere")
    assert "6 of 6 passages are without text: the work folder has no corpus." in nothing["cuts"]


def write_run(folder, lines, **changes):
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", {**REPORT, "methods": {"first": {"n": 2}}, **changes})
    (folder / "predictions").mkdir(exist_ok=True)
    (folder / "predictions" / "first.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_comparison_has_its_systems_corpus_and_curves(tmp_path):
    write_corpus(tmp_path / "rag" / "stages" / "corpus", {"7": "seven"})
    (tmp_path / "prag" / "stages" / "encode").mkdir(parents=True)
    log = tmp_path / "prag" / "stages" / "encode" / "log.jsonl"
    write_jsonl(log, [{"step": 0, "loss": 2.5}, {"step": 1, "loss": None}])
    write_corpus(tmp_path / "dpr" / "stages" / "corpus", {"7": "of earlier data"})  # left out now
    write_jsonl(tmp_path / "dpr" / "stages" / "corpus" / "log.jsonl", [{"step": 0, "loss": 1.0}])
    lines = [json.dumps(row) for row in make_rows(passages=["7"])]
    stages = [describe_stage(name) for name in ("rag corpus", "prag encode")]
    run = read_run(write_run(tmp_path, lines, stages=stages))
    assert run["passages"] == [["7", "t7", "seven"]]
    assert run["curves"] == {"prag encode": {"every": 1, "metrics": {"loss": [(0, 2.5)]}}}
    log.write_text('{"step": 0, "loss": 1}\n{"step": "x"}\n')
    with pytest.raises(RagJaxError, match=r"log.jsonl:2: must be an object of numbers"):
        read_curves(tmp_path, ["prag encode"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "first.jsonl:2 is not valid JSON"),
        ("[]", "first.jsonl:2: is no prediction: must be an object with an id"),
        ('{"id": 1}', "first.jsonl:2: is no prediction: id=1: must be text"),
        ('{"id": "a", "answers": [1]}', "first.jsonl:2: .*answers=.*must be texts"),
        ('{"id": "a", "passages": "7"}', "first.jsonl:2: .*passages='7': must be a list"),
        ('{"id": "a", "passages": [{}]}', "first.jsonl:2: .*must be an id, or have one"),
        ('{"id": "a", "passages": [{"id": "7", "score": NaN}]}', "2: .*score and rank must be num"),
        ('{"id": "a", "popularity": "x"}', "first.jsonl:2: .*popularity='x': must be a number"),
        ('{"id": "a", "votes": ["x"]}', "first.jsonl:2: .*votes=.*must be numbers"),
        ('{"id": "a", "seconds": Infinity}', "first.jsonl:2: .*seconds=inf: must be finite"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "first.jsonl"
    path.write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(RagJaxError, match=message):
        read_predictions(path)


def test_a_report_that_is_none(tmp_path):
    folder = write_run(tmp_path, [])
    (folder / "predictions" / "first.jsonl").unlink()
    with pytest.raises(RagJaxError, match=r"predictions/first.jsonl is missing"):
        read_run(folder)
    for text, message in [
        ("{", "is not valid JSON"),
        ('{"methods": {}}', "an earlier version"),
        ('{"seeds": [0, 1], "methods": {}}', "is of several seeds, and .*report.html shows it"),
    ]:
        (folder / "report.json").write_text(text)
        with pytest.raises(RagJaxError, match=message):
            read_run(folder)
    with pytest.raises(RagJaxError, match="report.json is missing"):
        read_run(tmp_path / "elsewhere")


def test_curves_are_means_of_equal_parts():
    rng = np.random.default_rng(0)
    values = rng.normal(size=1003)
    lines = [{"step": step, "loss": value} for step, value in enumerate(values.tolist())]
    lines[7]["late"] = 3.0
    found = thin_out(lines, most=100)
    assert found["every"] == 11
    parts = [values[start : start + 11] for start in range(0, 1003, 11)]
    steps, means = zip(*found["metrics"]["loss"], strict=True)
    assert steps == tuple(min(start + 10, 1002) for start in range(0, 1003, 11))
    np.testing.assert_allclose(means, [part.mean() for part in parts], rtol=1e-4, atol=1e-6)
    assert found["metrics"]["late"] == [(10, 3.0)]
    assert thin_out([], most=5) == {"every": 1, "metrics": {}}
