"""launch/report.py: what it writes where, and what it says of folders that are no finished runs."""

import dataclasses
import errno
import json
import os

import pytest
from browser.made_run import list_questions, write_run
from pages import read_page

from rag_jax.commands import report
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json
from rag_jax.systems.srrag.config import SRRAGConfig


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run", questions=list_questions(3))
    return tmp_path / "run"


def test_a_run_s_own_page_is_written_again(run, capsys):
    before = (run / "report.html").read_bytes()
    (run / "report.html").write_text("an earlier version's")
    report.main([str(run)])
    assert (run / "report.html").read_bytes() == before
    assert capsys.readouterr().out.endswith(f"report: {run / 'report.html'}\n")


def test_runs_side_by_side(run, tmp_path, monkeypatch):
    write_run(tmp_path / "other" / "run", questions=list_questions(2), methods=("alone",))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report.main([str(run), str(tmp_path / "other" / "run")])
    report.main([str(run), str(tmp_path / "other" / "run")])  # over its own page
    page = read_page(tmp_path / "here" / "report.html")
    assert page["title"] == "run, run, side by side"
    assert [entry["label"] for entry in page["runs"]] == ["run (1)", "run (2)"]
    assert [entry["rows"] for entry in page["runs"]] == [[0, 1, 2], [0, 1]]
    mine = tmp_path / "here" / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(RagJaxError, match=r"mine.html: is no page of a run, and would be overwrit"):
        report.main([str(run), f"--out={mine}"])
    assert mine.read_text() == "<p>mine</p>"
    report.main(["--out", "new.html", str(run)])
    assert len(read_page(tmp_path / "here" / "new.html")["runs"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN is missing"),
        (["--out=x.html"], "RUN is missing"),
        (["RUN", "--config=x"], "--config=x: not a flag of this command"),
        (["RUN", "RUN"], "is there twice"),
        (["RUN", "--out=FOLDER"], "is a folder; name a file"),
        (["RUN", "--out=FOLDER/none/x.html"], "x.html: there is no folder .*none; make it first"),
        (["RUN", "--out="], "--out=: is blank"),
        (["RUN", "--out"], "--out=: is blank"),
        (["FOLDER/none"], "none: there is no such folder"),
        (["RUN/report.html"], "report.html: is a file; name the work folder of a run"),
        (["RUN", "--out=PIPE"], "pipe is a named pipe in the place of a file: name a file with --"),
        (["FOLDER/empty"], "empty: is no work folder of a run: it has neither report.json nor sta"),
        (["FOLDER"], "has no report; finish the comparison, or name the folder of one run"),
    ],
)
def test_a_mistake_on_the_command_line(run, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    places = {"RUN": str(run), "FOLDER": str(tmp_path), "PIPE": str(tmp_path / "pipe")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    with pytest.raises(RagJaxError, match=message):
        report.main(arguments)


def test_a_folder_that_cannot_be_written_is_named_by_its_flag(run, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("rag_jax.evaluation.page.write_page", refuse)
    with pytest.raises(RagJaxError, match="read-only file system; .* can be written with --out$"):
        report.main([str(run), f"--out={tmp_path / 'x.html'}"])


def test_a_run_without_an_evaluation_says_what_is_missing(tmp_path):
    def refuse(message):
        with pytest.raises(RagJaxError, match=message):
            report.main([str(tmp_path)])

    (tmp_path / "stages" / "corpus").mkdir(parents=True)
    refuse("has no evaluation yet: stage corpus is not finished; run launch/train.py")
    (tmp_path / "stages" / "corpus" / "stage.json").write_text("{}")
    config = dataclasses.replace(SRRAGConfig(), ablations=True)
    write_json(tmp_path / "config.json", config)
    refuse("stage evaluate is not finished")
    for name, message in [("evaluate", "stage compare is not fini"), ("compare", "not its report")]:
        (tmp_path / "stages" / name).mkdir()
        (tmp_path / "stages" / name / "stage.json").write_text("{}")
        refuse(message)
    (tmp_path / "config.json").write_text(json.dumps({"system": "index"}))
    refuse("config.json: system='index' has no report")
