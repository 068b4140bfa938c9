"""A finished run is never destroyed: by other settings, by a failure, or by being stopped."""

import contextlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rag_jax.pipeline import records
from rag_jax.pipeline.protect import check_results, check_same
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json

PLACES = ("stages/corpus/", "stages/train/", "stages/evaluate/")
PAGE = "<html>\n<body>\n<h1>Run</h1>\n</body>\n</html>\n"


def list_stages(*, fails=None, error=None, ablation=False, versions=(), **settings):
    """corpus, train (needs it) and evaluate (needs both), each of its setting; one may fail."""

    def make(context):
        below = context.folder / "below"
        below.mkdir(exist_ok=True)
        write_json(below / "out", [context.name, settings.get(context.name, 0)])
        if context.name == fails:
            raise error
        if "train" in context.name:
            assert read_json(context.path("corpus", "below/out"))[0] == "corpus"
        write_json(context.folder / "more", 1)

    needs = {"corpus": (), "train": ("corpus",), "evaluate": ("corpus", "train")}
    if ablation:
        needs = {**needs, "train_other": ("corpus",)}
        needs["evaluate"] = (*needs.pop("evaluate"), "train_other")
    return [
        Stage(name, make, {"x": settings.get(name, 0)}, needs[name], version=1 + (name in versions))
        for name in needs
    ]


@pytest.fixture
def finished(tmp_path):
    workdir = tmp_path / "run"
    run_stages(list_stages(), workdir, config={"x": 0})
    write_json(workdir / "report.json", {"methods": {}})
    (workdir / "report.html").write_text(PAGE)
    return workdir


def read_bytes(workdir):
    paths = [path for path in workdir.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(workdir)): path.read_bytes() for path in paths if path.name != ".lock"
    }


def read_stages(workdir):
    """What is in the places of the stages, drafts apart."""
    read = read_bytes(workdir)
    return {
        name: read[name]
        for name in read
        if name.startswith(("stages/corpus", "stages/train", "stages/evaluate"))
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": 1}, r"stage corpus: settings changed \(x: 0 -> 1\)"),
        ({"train": 1}, r"stage train: settings changed \(x: 0 -> 1\)"),
        ({"corpus": 2, "train": 1}, r"stage corpus: settings changed \(x: 0 -> 2\), and 1 more"),
        ({"versions": ("corpus",)}, "stage corpus: the code that makes it changed"),
        ({"versions": ("train",)}, "stage train: the code that makes it changed"),
        ({"train": 1, "ablation": True}, "stage train: settings changed"),
        ({"train": 1, "evaluate": 1}, "stage train: settings changed"),
        ({"corpus": None}, r"settings changed \(x: 0 -> null\)"),
    ],
)
def test_other_settings_are_refused(finished, changes, said):
    before = read_bytes(finished)
    with pytest.raises(RagJaxError, match=said) as caught:
        run_stages(list_stages(**changes), finished, config={"x": 1})
    assert f"--workdir={finished}-2" in str(caught.value) and "--overwrite" in str(caught.value)
    assert read_bytes(finished) == before
    # The original command still finds everything.
    made = run_stages(list_stages(), finished, config={"x": 0})
    assert all(stage["reused"] for stage in made)
    assert read_bytes(finished) == before


def test_a_stage_that_evaluates_may_change(finished):
    stages = list_stages(train=1)
    stages[1] = replace(stages[1], evaluates=True)
    made = run_stages(stages, finished)
    assert [stage["reused"] for stage in made] == [True, False, False]


RESULTS = {"system": "rag", "model": "tiny", "config": {"seed": 0}}
SETTINGS = SimpleNamespace(system="rag", seed=0)


@pytest.mark.parametrize(
    ("changes", "other", "said"),
    [
        ({}, {}, ""),
        ({"evaluate": 1}, {}, r"stage evaluate: settings changed \(x: 0 -> 1\)"),
        ({"corpus": 1, "evaluate": 1}, {}, "stage corpus: .*, and 1 more"),
        ({"ablation": True}, {}, ""),  # a further row
        ({}, {"model": "other"}, "model: tiny -> other"),
        ({}, {"config": SimpleNamespace(system="prag", seed=0)}, "system: rag -> prag"),
        ({}, {"config": SimpleNamespace(system="rag", seed=1)}, "seed: 0 -> 1"),
    ],
)
def test_results_of_others_are_not_overwritten(finished, changes, other, said):
    names = [{"name": stage.name} for stage in list_stages()]
    write_json(finished / "report.json", {**RESULTS, "stages": names})
    this = {"model": "tiny", "config": SETTINGS, "given": {}, **other}
    expected = pytest.raises(RagJaxError, match=said) if said else contextlib.nullcontext()
    with expected as caught:
        check_results(list_stages(**changes), finished, **this)
    assert not said or f"--out={finished}-2" in str(caught.value)
    check_results(list_stages(**changes), finished / "elsewhere", **this)


def test_results_are_not_overwritten_by_fewer(finished):
    made = [{"name": stage.name} for stage in list_stages(ablation=True)]
    write_json(finished / "report.json", {**RESULTS, "stages": made})
    this = {"model": "tiny", "config": SETTINGS, "given": {}}
    with pytest.raises(RagJaxError, match=r"finished results .* \(stage train_other: left out\)"):
        check_results(list_stages(), finished, **this)


def test_a_run_of_the_same_settings(finished):
    check_same(list_stages(evaluate=1), finished, "rag")  # what it evaluates with is free
    with pytest.raises(RagJaxError, match=r"run: was made with other settings \(stage train: se"):
        check_same(list_stages(train=1), finished, "rag")
    write_json(finished / "config.json", {"system": "prag"})
    with pytest.raises(RagJaxError, match=r"run: was made with other .* \(system: prag -> rag\)"):
        check_same(list_stages(), finished, "rag")


def test_the_proposed_folder_is_free(finished):
    finished.with_name("run-2").mkdir()
    with pytest.raises(RagJaxError, match=f"--workdir={finished}-3"):
        run_stages(list_stages(train=1), finished)


@pytest.mark.parametrize(
    "changes", [{"evaluate": 1}, {"ablation": True}, {"versions": ("evaluate",)}]
)
def test_an_evaluation_and_ablations_are_free(finished, changes):
    before = read_stages(finished)
    run_stages(list_stages(**changes), finished)
    after = read_stages(finished)
    kept = [name for name in before if "evaluate" not in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize(
    "error", [RagJaxError("no"), ValueError("no"), KeyboardInterrupt(), OSError(28, "full")]
)
@pytest.mark.parametrize("fails", ["corpus", "train", "evaluate"])
def test_a_failure_leaves_what_was_there(finished, fails, error):
    """Of the stage that fails, and of those after it; with the corpus nothing at all is touched."""
    before = read_stages(finished)
    changed = list_stages(corpus=1, fails=fails, error=error)
    with pytest.raises((type(error), RagJaxError)):
        run_stages(changed, finished, config={"x": 1}, overwrite=True)
    after = read_stages(finished)
    order = ["corpus", "train", "evaluate"]
    left = tuple(f"stages/{name}/" for name in order[order.index(fails) :])
    assert {n: b for n, b in after.items() if n.startswith(left)} == {
        n: b for n, b in before.items() if n.startswith(left)
    }
    assert read_json(finished / "config.json") == {"x": 0 if fails == "corpus" else 1}
    if fails == "corpus":
        made = run_stages(list_stages(), finished, config={"x": 0})
        assert all(stage["reused"] for stage in made)
        assert read_stages(finished) == before
        assert not list((finished / "stages").glob(".*"))
    # The overwriting command continues, and ends as if it had not failed.
    run_stages(list_stages(corpus=1), finished, config={"x": 1}, overwrite=True)
    for name in order:
        wanted = [name, 1 if name == "corpus" else 0]
        assert read_json(finished / "stages" / name / "below" / "out") == wanted
    assert not list((finished / "stages").glob(".*"))


@pytest.mark.parametrize("moment", ["before the old folder goes", "before the new one comes"])
def test_stopped_while_a_stage_is_put_in_its_place(finished, monkeypatch, moment):
    def stop(folder, place):
        if folder == place:
            return
        if moment == "before the new one comes":
            shutil.rmtree(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "put_in_place", stop)
    with pytest.raises(KeyboardInterrupt):
        run_stages(list_stages(train=1), finished, overwrite=True)
    monkeypatch.undo()
    made = run_stages(list_stages(train=1), finished, overwrite=True)
    assert [stage["reused"] for stage in made] == [True, True, False]
    assert read_json(finished / "stages" / "train" / "below" / "out") == ["train", 1]
    assert not list((finished / "stages").glob(".*"))


def test_the_report_of_a_run_under_change_says_so(finished):
    seeds = finished / "seeds"
    seeds.mkdir()
    for name in ("report.json", "report.html"):
        shutil.copy(finished / name, seeds / name)
    with pytest.raises(KeyboardInterrupt):
        stages = list_stages(train=1, fails="train", error=KeyboardInterrupt())
        run_stages(stages, finished, overwrite=True)
    report = read_json(finished / "report.json")
    assert next(iter(report)) == "under_change" and report["methods"] == {}
    page = (finished / "report.html").read_text()
    assert page.count("The run is being changed") == 1
    assert page.index("being changed") < page.index("<h1>")
    assert read_json(seeds / "report.json") == report
    assert (seeds / "report.html").read_text() == page
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, finished, overwrite=True)
    assert (finished / "report.html").read_text() == page


def test_a_run_without_a_report_is_not_finished(finished):
    (finished / "report.json").unlink()
    made = run_stages(list_stages(train=1), finished)
    assert [stage["reused"] for stage in made] == [True, False, False]
