"""The report: its files, its tables, and what must not get into the page."""

import json
import re

import pytest
from pages import read_page, read_tables

from rag_jax.evaluation.figures import Bars
from rag_jax.evaluation.pairs import compare_rows
from rag_jax.evaluation.report import write_report
from rag_jax.evaluation.run_data import read_run
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import COLUMNS

METHODS = {
    "direct": {"n": 300, "accuracy": 0.5, "ci95": [0.44, 0.56], "seconds_per_question": 0.0123},
    "srrag": {
        "n": 300,
        "accuracy": 0.75,
        "ci95": [0.7, 0.8],
        "head": 0.9,
        "middle": 0.7,
        "tail": 0.65,
        "retrieval_rate": 0.4,
        "seconds_per_question": 0.1,
        "auroc": 0.6,
    },
}


def read_json_value(value):
    return json.loads(json.dumps(value))


COSTS = ("compile_times", "compile_seconds", "read_times", "read_seconds")
PROGRAMS = {
    "short": dict(zip(COSTS, (40, 0.3, 1, 0.1), strict=True)),
    "score": dict(zip(COSTS, (2, 0.75, 0, 0), strict=True)),
    "step": dict(zip(COSTS, (1, 8.0, 3, 0.25), strict=True)),
}
STAGES = [
    dict(
        name="label",
        seconds=61.23,
        compile_seconds=9.5,
        peak_bytes=2_500_000_000,
        reused=True,
        programs=PROGRAMS,
    ),
    dict(name="<b>&", seconds=0.0, compile_seconds=0.0, peak_bytes=0, reused=False),
]
PREDICTIONS = {"srrag": [{"id": "q1", "prediction": "Łódź"}], "direct": []}


def write(folder, **changes):
    arguments = {
        "system": "srrag",
        "config": SRRAGConfig(),
        "model": "smol<script>",
        "dataset": "gazetteer",
        "methods": METHODS,
        "stages": STAGES,
        "predictions": PREDICTIONS,
        "columns": COLUMNS,
        "scores": {"accuracy": "correct"},
    }
    return write_report(folder, **(arguments | changes))


def test_methods_that_are_left_out_leave_no_files(tmp_path):
    write(tmp_path)
    others = [tmp_path / "predictions" / "own.jsonl", tmp_path / "own.trec"]
    for path in (*others, tmp_path / "direct.trec"):
        path.write_text("")
    methods = {name: numbers for name, numbers in METHODS.items() if name != "direct"}
    write(tmp_path, methods=methods, predictions={"srrag": PREDICTIONS["srrag"]})
    assert not (tmp_path / "predictions" / "direct.jsonl").exists()
    assert not (tmp_path / "direct.trec").exists()
    assert all(path.exists() for path in (*others, tmp_path / "predictions" / "srrag.jsonl"))


def test_json(tmp_path):
    write(tmp_path)
    report = read_json(tmp_path / "report.json")
    assert list(report) == [
        "system",
        "config",
        "model",
        "dataset",
        "methods",
        "tables",
        "analysis",
        "columns",
        "scores",
        "figures",
        "stages",
        "environment",
    ]
    assert report["methods"] == METHODS
    assert report["stages"] == STAGES
    assert report["config"]["route"]["tau"] == SRRAGConfig().route.tau
    assert report["environment"]["peak_memory_bytes"] > 1e7
    assert read_jsonl(tmp_path / "predictions" / "srrag.jsonl") == PREDICTIONS["srrag"]


def test_table(tmp_path, capsys):
    write(tmp_path)
    assert capsys.readouterr().out == (
        "method    n       accuracy   head  middle   tail  retrieval rate  seconds per question\n"
        "--------------------------------------------------------------------------------------\n"
        "direct  300  0.500 ± 0.060      -       -      -               -                 0.012\n"
        "srrag   300  0.750 ± 0.050  0.900   0.700  0.650           0.400                 0.100\n"
        "\n"
        "stage  seconds  compiling  peak GB\n"
        "----------------------------------------\n"
        "label     61.2        9.5     2.50  kept\n"
        "<b>&       0.0        0.0        -\n"
        "total     61.2        9.5     2.50\n"
        f"\nreport: {tmp_path / 'report.html'}\n"
    )


def test_the_paired_comparison_is_in_every_form(tmp_path, capsys):
    answered = {
        "direct": [{"id": str(i), "correct": float(i % 2)} for i in range(20)],
        "srrag": [{"id": str(i), "correct": float(i > 4)} for i in range(20)],
    }
    paired = compare_rows(answered, "srrag", {"accuracy": "correct"})
    report = write(tmp_path, paired=paired)
    assert read_json(tmp_path / "report.json")["paired"] == read_json_value(report["paired"])
    title, rest = capsys.readouterr().out.split("\n\n", 1)[1].split("\n\n", 1)
    assert title.startswith("Differences on the same questions: Bonett and Price's interval and")
    head, _, row = rest.split("\n")[:3]
    wanted = ["against srrag", "score", "difference", "95 % interval", "better", "worse", "p"]
    assert re.split(r"\s{2,}", head) == [*wanted, "test"]
    low, high = paired["rows"]["direct"]["accuracy"]["ci95"]
    interval = f"{low:+.3f} to {high:+.3f}"
    numbers = ["direct", "accuracy", "-0.250", interval, "2", "7", "0.180", "McNemar"]
    assert re.split(r"\s{2,}", row) == numbers
    tables = read_tables(tmp_path / "report.html")
    assert [row[1:] for row in tables[title] if row[0] == "direct"] == [numbers[1:]]


def test_the_page_has_the_tables_and_the_figures(tmp_path):
    bars = Bars(y="accuracy", groups=["head", "tail"], bars={"a": [1, 0.5], "b": [None, 0.25]})
    report = write(tmp_path, figures={"thirds": bars}, tables={"<b>": [["x", "y"], ["z", 0.5]]})
    (run,) = read_page(tmp_path / "report.html")["runs"]
    assert run["tables"]["<b>"] == [["x", "y"], ["z", "0.500"]]
    assert run["tables"]["stages"][1:3] == [
        ["label", "61.2", "9.5", "2.50", "kept"],
        ["<b>&", "0.0", "0.0", "-", ""],
    ]
    assert run["tables"]["programs"][1:] == [
        ["step", "label", "1", "8.0", "3", "0.2"],
        ["score", "label", "2", "0.8", "0", "0.0"],
    ]
    assert run["tables"]["methods"][0][:3] == ["method", "n", "accuracy"]
    bars = {"kind": "bars", "y": "accuracy", "groups": ["head", "tail"]}
    assert run["figures"] == {"thirds": bars | {"bars": {"a": [1, 0.5], "b": [None, 0.25]}}}
    assert run["model"] == "smol<script>" and run["name"] == tmp_path.name
    again = read_run(tmp_path)
    assert {**run, **again} == run | {"questions": again["questions"]}
    assert report["scores"] == {"accuracy": "correct"}


def test_no_questions(tmp_path):
    with pytest.raises(RagJaxError, match="method direct: no questions were left"):
        write(tmp_path, methods={"direct": {"n": 0}})
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_failed_has_an_empty_row(tmp_path, capsys):
    methods = {"whole": {"n": 2, "accuracy": 0.5}, "failed": {"error": "why"}}
    report = write(tmp_path, methods=methods)
    assert report["methods"]["failed"] == {"error": "why"}
    assert "failed  -" in capsys.readouterr().out


def test_a_number_that_is_none_writes_no_report(tmp_path):
    with pytest.raises(ValueError):
        write(tmp_path, methods={"direct": {"n": 1, "accuracy": float("nan")}})
    assert not (tmp_path / "report.json").exists()
