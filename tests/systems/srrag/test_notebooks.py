"""The notebooks that run commands, on the tiny finished run and its models."""

import ast
import re

import jax
import pytest
from notebooks import run_notebook

from rag_jax.runtime.files import read_json


@pytest.fixture(autouse=True)
def as_a_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run(copied, config_file):
    """The settings of the finished run, in the place of the first cell's."""
    return {"config": str(config_file), "workdir": str(copied)}


def test_quickstart(run, capsys):
    trained, answered = run_notebook("quickstart", **run)
    printed = capsys.readouterr().out
    # The finished run is kept, and its table is the command's.
    assert all(line in trained for line in printed.splitlines()[:3])
    report = read_json(f"{run['workdir']}/report.json")
    counts = re.findall(r": (\d+) questions, [\d.]+ of them right", printed)
    assert sum(map(int, counts)) == report["methods"]["srrag"]["n"]
    assert answered.strip()


def test_own_documents(run, capsys):
    (answered,) = run_notebook("own_documents", **run, folder="folder")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("garden.txt#1 | garden | The garden gate is locked at nine.")
    assert lines[1].startswith("pump.md#2 | Pump | The pump is in the cellar.")
    assert lines[2].endswith(" garden.txt#1")
    assert "garden.txt" in answered or "pump.md" in answered


def test_tpu(llama_folder, capsys):
    (plan,) = run_notebook("tpu", model=str(llama_folder), questions=500)
    assert "stage1" in plan
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "1 x cpu"
    assert second.endswith("{'data': 1, 'model': 1}")
    assert len(ast.literal_eval(third)) == 2
