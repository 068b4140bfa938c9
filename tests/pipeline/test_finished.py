"""A run that takes finished stages of another work folder."""

import pytest
from systems.asked import take_stock

from rag_jax.pipeline.finished import find_finished, list_evaluation
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json

TRAINED = ("train", "tuned")
NEEDS = {
    "corpus": (),
    "mined": ("corpus",),
    "train": ("corpus", "mined"),
    "index": ("corpus", "train"),
    "plain": ("corpus",),
    "tuned": ("train", "plain"),
    "evaluate": ("corpus", "plain", "index", "tuned"),
    "curve": ("corpus", "train"),
}


def list_stages(data="first", **settings):
    """Each stage writes what it read of every stage that it needs."""

    def make(context):
        read = {
            need: read_json(context.path(need, "out"))["made_of"]
            for need in NEEDS[context.name]
            if context.needs(need)
        }
        own = data if context.name == "corpus" else settings.get(context.name, 0)
        write_json(context.folder / "out", {"made_of": [own, read]})

    return [
        Stage(name, make, {"x": data if name == "corpus" else settings.get(name, 0)}, NEEDS[name])
        for name in NEEDS
    ]


def read_out(workdir, name):
    return read_json(workdir / "stages" / name / "out")["made_of"]


def evaluate(workdir, out, **settings):
    """Evaluates on other data; the names of the stages that were made."""
    given = find_finished(list_stages(), workdir, TRAINED)
    stages = list_evaluation(list_stages("other", **settings), TRAINED, given=True)
    made = run_stages(stages, out, config={}, given=given, flag="--out")
    return [record["name"] for record in made if not record["reused"]]


@pytest.fixture
def workdir(tmp_path):
    run_stages(list_stages(), tmp_path / "run", config={})
    return tmp_path / "run"


def test_stages_are_read_where_they_are(workdir, tmp_path):
    """What depends on the data is made anew, of the trained stages as they were trained."""
    before, out = take_stock(workdir), tmp_path / "out"
    assert evaluate(workdir, out) == ["corpus", "index", "plain", "evaluate", "curve"]
    other, trained = ["other", {}], read_out(workdir, "train")
    assert "first" in str(trained) and not (out / "stages" / "train").exists()
    assert read_out(out, "index") == [0, {"corpus": other, "train": trained}]
    assert read_out(out, "curve") == [0, {"corpus": other, "train": trained}]
    assert read_out(out, "evaluate")[1]["tuned"] == read_out(workdir, "tuned")
    assert evaluate(workdir, out) == []
    assert take_stock(workdir) == before


def test_a_stage_that_was_trained_again(workdir, tmp_path, capfd):
    """What was built on it is made again, and until then the report says that it is outdated."""
    out = tmp_path / "out"
    evaluate(workdir, out)
    write_json(out / "report.json", {"methods": {}})
    (workdir / "stages" / "train" / "out").unlink()
    with pytest.raises(RagJaxError, match="stage train: out removed, cut short or altered; run l"):
        evaluate(workdir, out)
    assert "under_change" not in read_json(out / "report.json")
    run_stages(list_stages(), workdir, config={})
    assert evaluate(workdir, out) == ["index", "evaluate", "curve"]
    assert "stage index: train was made again, redoing" in capfd.readouterr().err
    assert "under_change" in read_json(out / "report.json")


def test_results_on_other_data_are_not_overwritten(workdir, tmp_path):
    out = tmp_path / "out"
    evaluate(workdir, out)
    write_json(out / "report.json", {"methods": {}})
    with pytest.raises(RagJaxError, match=f"of its own, --out={out}-2, or overwrite"):
        evaluate(workdir, out, plain=1)
    assert evaluate(workdir, out, evaluate=1) == ["evaluate"]


def test_without_the_trained_stages():
    """What is made of them is left out, and the evaluation does without."""
    stages = list_evaluation(list_stages(), TRAINED, given=False)
    needs = {stage.name: stage.needs for stage in stages}
    evaluated = {"evaluate": ("corpus", "plain"), "curve": ("corpus",)}
    assert needs == {"corpus": (), "plain": ("corpus",), **evaluated}
