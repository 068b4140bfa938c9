"""What the evaluation of the tiny run keeps, and what its report says of the choice of sources."""

import numpy as np
import pytest
from pages import read_page

from rag_jax.runtime.files import read_jsonl
from systems.srrag.tiny_run import METHODS


def test_the_report_has_it(finished):
    workdir, report = finished
    routing = report["analysis"]["routing"]
    assert list(routing) == ["srrag", "without_knn"]
    for name, found in routing.items():
        methods = report["methods"]
        ends = found["frontier"]["points"][0], found["frontier"]["points"][-1]
        assert [p["accuracy"] for p in ends] == [
            methods["verbalise"]["accuracy"],
            methods["retrieve"]["accuracy"],
        ]
        rates = [third["retrieval_rate"] for third in found["by_popularity"].values()]
        assert np.mean(rates) == pytest.approx(methods[name]["retrieval_rate"])
    for stage in ("labels", "datastore"):
        statistics = report["analysis"][stage]
        assert statistics["n"] == 12 and sum(statistics["share"].values()) == pytest.approx(1)
    written = read_jsonl(workdir / "predictions" / "verbalise.jsonl")
    cut_off = sum(record["cut_off"] for record in written)
    assert report["methods"]["verbalise"]["cut_off"] == cut_off
    (table,) = [rows for rows in report["tables"].values() if rows[0][0] == "source"]
    assert [row[-2:] for row in table[1:]] == [[str(cut_off), "-"], ["-", "0"]]
    (page,) = read_page(workdir / "report.html")["runs"]
    assert [figure["kind"] for figure in page["figures"].values()] == ["lines", "lines", "bars"]
    assert "verbalising changes" in " ".join(page["tables"])
    assert any("AUROC" in rows[0] for rows in page["tables"].values())


def test_a_file_for_each_method(finished):
    workdir, report = finished
    folder = workdir / "stages" / "evaluate"
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *(f"{method}.jsonl" for method in METHODS),
        "answers_direct.jsonl",
        "passes.jsonl",
        "taus.json",
        "started.json",
        "stage.json",
    }
    for method in METHODS:
        records = read_jsonl(folder / f"{method}.jsonl")
        assert records == read_jsonl(workdir / "predictions" / f"{method}.jsonl")
        assert np.mean([r["correct"] for r in records]) == report["methods"][method]["accuracy"]
