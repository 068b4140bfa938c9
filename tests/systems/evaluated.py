"""What the tests of evaluating a run on another dataset share."""

import shutil
from dataclasses import fields, replace

import jax
import pytest

from rag_jax.config import DataConfig, build
from rag_jax.data.gazetteer import build_world
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from systems.asked import take_stock


def write_world(folder, **counts):
    """Another world than the run's, with so many questions by split, none by default."""
    sizes = {"cities": 4, "countries": 3, "train": 0, "dev": 0, "test": 0, "seed": 5}
    world = build_world(**sizes | counts)
    folder.mkdir()
    write_jsonl(folder / "passages.jsonl", world.passages)
    for split in counts:
        records = [
            {
                "id": q.id,
                "question": q.question,
                "answers": list(q.answers),
                "passage_id": q.passage_id,
            }
            for q in world.questions[split]
        ]
        write_jsonl(folder / f"{split}_questions.jsonl", records)
    return DataConfig(path=str(folder))


def list_made(report):
    """The names of the stages that were made, not kept."""
    return [stage["name"] for stage in report["stages"] if not stage["reused"]]


def read_answers(folder, methods):
    """Every method's records, without what depends on the machine."""
    timed = ("seconds", "load_ms")
    return {
        method: [
            {name: value for name, value in row.items() if name not in timed}
            for row in read_jsonl(folder / f"{method}.jsonl")
        ]
        for method in methods
    }


def evaluate_directly(system, session_type, config, data, folder, names, methods):
    """Runs stages by hand, in a folder that has the trained ones, and reads what they answered."""
    settings = build(system.CONFIG, config)
    changes = {"data": data, "evaluate_on": "test"}
    if "ablations" in {field.name for field in fields(settings)}:
        changes["ablations"] = False
    session = session_type(replace(settings, **changes), trains=False)
    stages = {stage.name: stage for stage in system.list_stages(session)}
    with jax.set_mesh(session.mesh):
        for name in names:
            (folder / name).mkdir(parents=True)
            stages[name].run(StageContext(stages[name], folder))
    return read_answers(folder / "evaluate", methods)


def check_evaluation(system, session_type, config, finished, tmp_path, *, trained, made):
    """A run evaluated on a dataset without training questions; returns the data and the report.

    Its answers are those of the trained weights over the dataset, the run's folder stays as it is,
    a second call keeps all that the first one made, and what was built on a stage that has been
    trained again is made again.
    """
    workdir, data = finished[0], write_world(tmp_path / "other", test=2)
    before, out = take_stock(workdir), tmp_path / "out"
    report = system.evaluate_on(config, workdir, data, "test", out)
    assert list_made(report) == made
    for name in trained:
        shutil.copytree(workdir / "stages" / name, tmp_path / "direct" / name)
    direct = system, session_type, config, data, tmp_path / "direct", made
    methods = list(report["methods"])
    assert read_answers(out / "predictions", methods) == evaluate_directly(*direct, methods)
    assert list_made(system.evaluate_on(config, workdir, data, "test", out)) == []
    assert take_stock(workdir) == before
    results = take_stock(out)
    with pytest.raises(RagJaxError, match=r"holds finished results .* \(model: .*, untrained"):
        system.evaluate_on(config, None, data, "test", out)
    assert take_stock(out) == results

    copy = shutil.copytree(workdir, tmp_path / "again")
    record = copy / "stages" / trained[-1] / "stage.json"
    assert list_made(system.evaluate_on(config, copy, data, "test", out)) == []
    write_json(record, read_json(record) | {"run": "another"})
    again = list_made(system.evaluate_on(config, copy, data, "test", out))
    assert again and again == made[-len(again) :]

    for place in (workdir / "other", workdir):
        with pytest.raises(RagJaxError, match=f"--out={place}: is in the work folder"):
            system.evaluate_on(config, workdir, data, "test", place)
    with pytest.raises(RagJaxError, match="has a run that was trained there"):
        system.evaluate_on(config, None, data, "test", workdir)
    assert take_stock(workdir) == before
    return data, report
