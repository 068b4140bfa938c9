"""A whole comparison over hand-made runs: the report, failures, going on, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pages import read_page, read_tables

from rag_jax.comparison.config import CompareConfig
from rag_jax.comparison.run import compare
from rag_jax.config import DataConfig
from rag_jax.runtime import trackers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems import open_room

HOSTILE = "<script>alert(1)</script>"
ANSWERS = {"q0": "yes", "q1": "no", "q2": "yes", "q3": "no"}
STAGES = {"srrag": ("index", "stage2"), "prag": ("retrieve", "encode"), "rag": ("index", "joint")}


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    passages = [{"id": f"p{i}", "title": "", "text": f"{HOSTILE} {i}"} for i in range(4)]
    asked = [
        {"id": id, "question": HOSTILE, "answers": [answer], "passage_id": "p0"}
        for id, answer in ANSWERS.items()
    ]
    for name, records in {"passages": passages, "test_questions": asked}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return CompareConfig(systems=("prag", "srrag"), data=DataConfig(path=str(folder)))


class Runs:
    """Runs that write what a system's run leaves, and note in which order they were called."""

    def __init__(self):
        self.called, self.overwrites, self.ends = [], [], {}

    def __call__(self, system, settings, folder, *, overwrite):
        self.called.append(system)
        self.overwrites.append(overwrite)
        end = self.ends.get(system)
        if isinstance(end, type):
            raise end
        if end is not None:
            return end
        methods = open_room(system, "pipeline").describe_report(settings).methods
        files = {"stages/corpus/passages.jsonl": "x" * 40}
        files["stages/evaluate/adapters.json"] = '{"documents": 2}'
        files["stages/augment/augmented.jsonl"] = "{}\n{}\n"
        for number, method in enumerate(methods):
            # The first row is never right, the second once, and so on.
            right = dict(list(ANSWERS.items())[:number])
            records = [
                {
                    "id": id,
                    "prediction": f"It is {right.get(id, HOSTILE)}.",
                    "seconds": 0.1 * number,
                    "retrieved": 1.0,
                }
                for id in ANSWERS
            ]
            files[f"predictions/{method}.jsonl"] = "".join(json.dumps(r) + "\n" for r in records)
        stages = [
            {"name": n, "seconds": 2.0, "compile_seconds": 1.0, "peak_bytes": 5, "reused": False}
            for n in STAGES[system]
        ]
        report = {"methods": {name: {} for name in methods}, "stages": stages}
        files["report.json"] = json.dumps(report)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return None


@pytest.fixture
def runs():
    return Runs()


def test_report(config, runs, tmp_path, capsys):
    workdir = tmp_path / "run"
    report = compare(replace(config, reference="prag.parametric"), workdir, run=runs)
    assert report == read_json(workdir / "report.json") | report and runs.called == [
        *config.systems
    ]
    shared = {(workdir / system / "embeddings").resolve() for system in config.systems}
    assert shared == {(workdir / "embeddings").resolve()}
    rows = report["methods"]
    assert list(rows)[:2] == ["prag.direct", "prag.in_context"] and "srrag.srrag" in rows
    assert [rows[f"srrag.{n}"]["accuracy"] for n in ("direct", "verbalise", "retrieve")] == [
        0,
        0.25,
        0.5,
    ]
    assert rows["prag.direct"]["offline_seconds"] == rows["prag.direct"]["bytes_a_document"] == 0
    assert rows["prag.parametric"]["offline_seconds"] == 4
    assert rows["srrag.retrieve"]["bytes_a_document"] == 10
    assert report["paired"]["reference"] == "prag.parametric"
    against = report["paired"]["rows"]["prag.direct"]["accuracy"]
    assert (against["difference"], against["worse"]) == (-0.75, 3)
    assert [stage["name"] for stage in report["stages"]][:2] == ["prag retrieve", "prag encode"]
    graded = read_jsonl(workdir / "predictions" / "srrag.retrieve.jsonl")
    assert [row["correct"] for row in graded] == [1, 1, 0, 0]
    assert report["analysis"]["frontier"]["bytes"] == ["prag.random"]
    assert "what the rows are" in capsys.readouterr().out
    (run,) = read_page(workdir / "report.html")["runs"]
    assert HOSTILE not in (workdir / "report.html").read_text("utf-8")
    assert [figure["kind"] for figure in run["figures"].values()] == ["costs", "costs"]
    assert run["methods"]["srrag.direct"]["prediction"][0] == f"It is {HOSTILE}."


def test_a_system_that_fails_is_a_row_and_is_tried_again(config, runs, tmp_path, capsys):
    workdir = tmp_path / "run"
    runs.ends["prag"] = f"config.{HOSTILE}: wrong"
    with pytest.raises(RagJaxError, match=r"1 of 2 systems failed \(prag\); .*says why"):
        compare(config, workdir, run=runs)
    report = read_json(workdir / "report.json")
    assert report["methods"]["prag"] == {"error": f"config.{HOSTILE}: wrong"}
    assert report["methods"]["srrag.direct"]["n"] == 4 and "paired" not in report
    out = capsys.readouterr().out
    assert re.search(r"^prag +(-\s*)+$", out, re.MULTILINE) and "systems that failed" in out
    assert HOSTILE not in (workdir / "report.html").read_text("utf-8")
    assert HOSTILE in read_tables(workdir / "report.html")["systems that failed"][1][1]
    runs.ends.clear()
    wrong = replace(config, srrag=replace(config.srrag, contexts=5))
    with pytest.raises(RagJaxError, match=r"would overwrite \(config.srrag.contexts: 3 -> 5\)"):
        compare(wrong, workdir, run=runs)
    mended = replace(config, prag=replace(config.prag, ask="in_context"))
    report = compare(mended, workdir, run=runs)
    assert report["analysis"]["failed"] == {} and report["paired"]["reference"] == "prag.direct"


def test_all_systems_fail(config, runs, tmp_path):
    runs.ends = dict.fromkeys(config.systems, "no")
    with pytest.raises(RagJaxError, match="2 of 2 systems failed"):
        compare(config, tmp_path / "run", run=runs)
    assert read_json(tmp_path / "run" / "report.json")["analysis"]["frontier"] == {}


def test_a_run_whose_predictions_are_damaged_is_a_row(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(config, workdir, run=runs)
    (workdir / "srrag" / "predictions" / "retrieve.jsonl").write_text("{")
    with pytest.raises(RagJaxError, match=r"1 of 2 systems failed \(srrag\)"):
        compare(config, workdir, run=lambda *_, **__: None)
    report = read_json(workdir / "report.json")
    assert "retrieve.jsonl" in report["methods"]["srrag"]["error"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_comparison_goes_on(config, runs, tmp_path, end):
    workdir = tmp_path / "run"
    runs.ends["srrag"] = end
    with pytest.raises(end):
        compare(config, workdir, run=runs)
    assert not (workdir / "report.json").exists() and (workdir / "prag" / "report.json").exists()
    made = (workdir / "data" / "passages.jsonl").stat().st_mtime_ns
    left = workdir / f".data.{'0a' * 16}"
    left.mkdir()  # as a killed process leaves it
    own = workdir / ".data.old"
    own.mkdir()
    runs.ends.clear()
    compare(config, workdir, run=runs)
    assert runs.called == ["prag", "srrag"] * 2
    assert (workdir / "data" / "passages.jsonl").stat().st_mtime_ns == made
    assert own.exists() and not left.exists()


def test_a_finished_comparison_is_not_overwritten_by_another(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(config, workdir, run=runs)
    before = (workdir / "report.json").read_bytes()
    for change, message in {
        "seed": "config.seed: 0 -> 1",
        "questions": "config.questions: 40 -> 1",
    }.items():
        with pytest.raises(RagJaxError, match=rf"would overwrite \({message}\).*--overwrite"):
            compare(replace(config, **{change: 1}), workdir, run=runs)
    source = Path(config.data.path) / "passages.jsonl"
    source.write_text(source.read_text() + '\n{"id": "new", "text": "x"}')
    with pytest.raises(RagJaxError, match=r"would overwrite \(the files of the data"):
        compare(config, workdir, run=runs)
    assert (workdir / "report.json").read_bytes() == before and len(runs.called) == 2
    compare(replace(config, seed=1), workdir, overwrite=True, run=runs)
    more = replace(config, seed=1, systems=("prag", "srrag", "rag"), reference="rag.thorough")
    report = compare(more, workdir, run=runs)
    assert report["paired"]["reference"] == "rag.thorough"
    (workdir / "report.json").write_text('{"system": "rag"}')
    with pytest.raises(RagJaxError, match="system: rag -> compare"):
        compare(more, workdir, run=runs)


def test_runs_are_told_whether_they_may_overwrite_what_is_finished(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(config, workdir, run=runs)
    compare(replace(config, seed=1), workdir, overwrite=True, run=runs)
    assert runs.overwrites == [False] * 2 + [True] * 2
    runs.ends["prag"] = "in use by another run"  # a finished run, which stays one
    with pytest.raises(RagJaxError, match=r"1 of 2 systems failed \(prag\)"):
        compare(replace(config, seed=1), workdir, run=runs)
    mended = replace(config, seed=1, prag=replace(config.prag, ask="in_context"))
    with pytest.raises(RagJaxError, match=r"would overwrite \(config\.prag\.ask: "):
        compare(mended, workdir, run=runs)


def test_a_system_that_never_ran_may_have_any_settings(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(replace(config, systems=("srrag",)), workdir, run=runs)
    more = replace(config, prag=replace(config.prag, ask="in_context"))
    assert compare(more, workdir, run=runs)["methods"].keys() >= {"prag.direct", "srrag.direct"}


def test_the_data_may_be_moved(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(config, workdir, run=runs)
    Path(config.data.path).rename(tmp_path / "moved")
    moved = replace(config, data=DataConfig(path=str(tmp_path / "moved")))
    compare(moved, workdir, run=runs)
    assert len(runs.called) == 4


def test_an_interrupted_change_is_said_in_the_report(config, runs, tmp_path):
    workdir = tmp_path / "run"
    compare(config, workdir, run=runs)
    runs.ends["srrag"] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        compare(config, workdir, run=runs)
    assert "under_change" not in read_json(workdir / "report.json")
    with pytest.raises(KeyboardInterrupt):
        compare(replace(config, seed=1), workdir, overwrite=True, run=runs)
    assert "is of the run as it was before" in read_json(workdir / "report.json")["under_change"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebodys_own_is_not_replaced(config, runs, tmp_path, overwrite):
    own = tmp_path / "run" / "data"
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("mine")
    with pytest.raises(RagJaxError, match=r"data: was not made by this command, .* --workdir"):
        compare(config, tmp_path / "run", overwrite=overwrite, run=runs)
    assert (own / "notes.txt").read_text() == "mine" and runs.called == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "prag.x"}, r"config\.reference='prag\.x': no such row; there are prag\.dir"),
        ({"reference": "rag.thorough"}, "no such row"),  # of a system that is left out
        ({"evaluate_on": "dev"}, "config.evaluate_on='dev': the data has no such questions"),
        ({"data": DataConfig(path="/nowhere")}, "config.data.path=/nowhere: no such folder"),
        ({"track": "wandb"}, "config.track='wandb': none is not installed"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    config, runs, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "none")
    with pytest.raises(RagJaxError, match=message):
        compare(replace(config, **changes), tmp_path / "run", run=runs)
    assert runs.called == [] and not (tmp_path / "run" / "report.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("run[1]", r"run\[1\]: has a \[ in its name, with which"), ("data", "has the data")],
)
def test_work_folders_that_are_refused(config, runs, tmp_path, name, message):
    (tmp_path / "data").mkdir()
    asked = replace(config, data=DataConfig(path=str(tmp_path / "data")))
    with pytest.raises(RagJaxError, match=message):
        compare(asked, tmp_path / name, run=runs)
    assert runs.called == [] and [path.name for path in tmp_path.glob("run*")] == []
