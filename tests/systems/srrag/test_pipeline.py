"""The main job from an empty folder to the report, on tiny random models."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from in_process import InProcess
from pages import read_page
from safetensors.numpy import load_file, save_file

from rag_jax.config import DataConfig, build
from rag_jax.data.gazetteer import build_world
from rag_jax.data.questions import load_collection
from rag_jax.evaluation.answers import match
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.checkpoint import save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, to_json, write_jsonl
from rag_jax.runtime.manifest import hash_file
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SourceConfig, SRRAGConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.entries import evaluate_with_entries
from rag_jax.systems.srrag.pipeline import evaluate_on
from rag_jax.systems.srrag.session import Session
from rag_jax.training import fit as training
from systems import evaluated
from systems.compared import check_rows
from systems.rooms import check_rooms
from systems.srrag.tiny_run import (
    BACKEND,
    METHODS,
    STAGES,
    list_names,
    open_stage,
    quick_programs,
    read_predictions,
    without_times,
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


# The report.


def test_room_on_the_disk(finished, session):
    estimated = check_rooms(session, pipeline.list_stages(session), finished[0])
    assert estimated == ["index", "stage1", "stage2", "datastore"]


def test_report(finished, make_config):
    workdir, returned = finished
    report = read_json(workdir / "report.json")
    assert set(report) == {
        "system",
        "config",
        "model",
        "dataset",
        "methods",
        "tables",
        "analysis",
        "paired",
        "columns",
        "scores",
        "figures",
        "stages",
        "environment",
    }
    assert report["paired"]["reference"] == "srrag"
    assert list(report["paired"]["rows"]) == [name for name in METHODS if name != "srrag"]
    for method, scores in report["paired"]["rows"].items():
        difference = report["methods"][method]["accuracy"] - report["methods"]["srrag"]["accuracy"]
        assert scores["accuracy"]["difference"] == pytest.approx(difference)
    (choice,) = (rows for title, rows in report["tables"].items() if title.startswith("Choice"))
    assert {"always verbalise", "always retrieve"} <= {row[0] for row in choice}
    assert report["system"] == "srrag"
    assert report["model"] == make_config().model.name
    assert report["dataset"] == "gazetteer, test questions"
    assert build(SRRAGConfig, report["config"]) == build(SRRAGConfig, make_config())
    assert list_names(report, reused=False) == STAGES
    for stage in report["stages"]:
        assert stage["seconds"] >= stage["compile_seconds"] >= 0
    assert list(report["methods"]) == METHODS
    for numbers in report["methods"].values():
        assert numbers["n"] == 9
        low, high = numbers["ci95"]
        assert 0 <= low <= numbers["accuracy"] <= high <= 1
        assert numbers["exact_match"] <= numbers["accuracy"]
        thirds = [numbers[third] for third in ("head", "middle", "tail")]
        assert np.mean(thirds) == pytest.approx(numbers["accuracy"])
        assert isinstance(numbers["seconds_per_question"], float)
    rates = {name: numbers["retrieval_rate"] for name, numbers in report["methods"].items()}
    assert (rates["direct"], rates["verbalise"], rates["retrieve"]) == (0, 0, 1)
    assert all(numbers["fell_back"] == 0 for numbers in report["methods"].values())
    assert json.loads(to_json(returned["methods"])) == report["methods"]


def test_rows_of_a_comparison(finished):
    rows = check_rows("srrag", finished[0])
    for name, numbers in finished[1]["methods"].items():
        for column in ("accuracy", "retrieval_rate", "prompt_tokens", "generated_tokens"):
            assert rows[name][column] == pytest.approx(numbers[column])


def test_the_page_has_every_question_as_each_method_answers_it(finished):
    workdir, _ = finished
    page = read_page(workdir / "report.html")
    (run,), asked = page["runs"], page["questions"]
    assert list(run["methods"]) == [*METHODS] and run["sources"] == ["Self", "Wiki"]
    assert list(run["curves"]) == ["stage1", "stage2"]
    texts = {
        passage.id: passage.text
        for passage in load_collection(workdir / "stages" / "corpus").passages
    }
    records = read_jsonl(workdir / "predictions" / "srrag.jsonl")
    assert asked["id"] == [record["id"] for record in records]
    columns = run["methods"]["srrag"]
    for row, record in enumerate(records):
        assert columns["prediction"][row] == record["prediction"]
        assert columns["source"][row] == record["source"]
        assert columns["probabilities"][row] == pytest.approx(record["probabilities"], rel=1e-4)
        assert columns["numbers"]["correct"][row] == record["correct"]
        found = columns["passages"][row]
        assert len(found) == (record["source"] == "Wiki")
        for (place, score), passage in zip(found, record.get("passages", []), strict=True):
            id, _, text = run["passages"][place]
            assert (id, text) == (passage["id"], texts[id])
            assert score == pytest.approx(passage["score"], rel=1e-4)
            assert text[:20] in record["knowledge"]


def test_predictions(finished, session):
    workdir, report = finished
    open_stage(session, workdir, "evaluate")
    corpus = session.corpus
    passages = {join_passages([(p.title, p.text)]) for p in corpus.passages}
    found = read_predictions(workdir)
    for method, records in found.items():
        assert [record["id"] for record in records] == [q.id for q in corpus.questions["test"]]
        for record, question in zip(records, corpus.questions["test"], strict=True):
            assert record["question"] == question.question
            assert record["correct"] == match(record["prediction"], question.answers)
            assert method == "direct" or (record["knowledge"] in passages) == record["retrieved"]
        shares = {key: np.mean([r[key] for r in records]) for key in ("correct", "retrieved")}
        assert shares["correct"] == report["methods"][method]["accuracy"]
        assert shares["retrieved"] == report["methods"][method]["retrieval_rate"]


def check_routing(workdir, *, tau):
    """The rule, and that a fixed policy gives the same answer from the source that was chosen."""
    found = read_predictions(workdir)
    for routed, written, read in zip(
        found["srrag"], found["verbalise"], found["retrieve"], strict=True
    ):
        searches = routed["probabilities"][1] * routed["votes"][1] > tau
        assert sum(routed["probabilities"]) == pytest.approx(1)
        assert sum(routed["votes"]) == pytest.approx(1)
        assert routed == (read if searches else written)
        assert routed["scores"] == pytest.approx(
            np.multiply(routed["probabilities"], routed["votes"])
        )
        assert (written["source"], read["source"]) == ("Self", "Wiki")


def test_routing(finished, make_config):
    check_routing(finished[0], tau=make_config().route.tau)


# Running again.


def test_a_second_run_reuses_every_stage(finished, copied, make_config):
    report = pipeline.run(make_config(), copied)
    assert list_names(report, reused=True) == STAGES
    assert report["methods"] == finished[1]["methods"]
    for ours, theirs in zip(report["stages"], finished[1]["stages"], strict=True):
        assert ours == theirs | {"reused": True}


def test_another_tau_redoes_the_evaluation_alone(finished, copied, make_config):
    before = read_predictions(copied)
    products = sorted(r["probabilities"][1] * r["votes"][1] for r in before["srrag"])
    # Within the widest gap that doesn't divide the questions as before.
    gaps, read = np.diff(products), sum(r["retrieved"] for r in before["srrag"])
    gaps[np.arange(8, 0, -1) == read] = 0
    cut = int(np.argmax(gaps))
    tau = (products[cut] + products[cut + 1]) / 2
    report = pipeline.run(make_config(**{"route.tau": float(tau)}), copied)
    assert list_names(report, reused=False) == ["evaluate"]
    assert report["methods"]["srrag"]["retrieval_rate"] == pytest.approx((8 - cut) / 9)
    check_routing(copied, tau=tau)
    after = read_predictions(copied)
    assert after["srrag"] != before["srrag"]
    assert {m: after[m] for m in METHODS[:3]} == {m: before[m] for m in METHODS[:3]}


@pytest.fixture
def interruptions(monkeypatch):
    """Interrupts everything that takes long, once, in its middle; what was interrupted so far."""
    stopped = []
    run_map, make_step = StageContext.map, training.make_step

    def stop_in(run, file, batches):
        calls = itertools.count(1)

        def work(batch):
            if next(calls) == min(2, batches) and file not in stopped:
                stopped.append(file)
                raise KeyboardInterrupt
            return run(batch)

        return work

    def stopping_map(self, file, items, run, *, batch_size, unit):
        run = stop_in(run, file, -(-len(items) // batch_size))
        return run_map(self, file, items, run, batch_size=batch_size, unit=unit)

    def stopping_make_step(losses, optimizer):
        step, calls = make_step(losses, optimizer), itertools.count(1)

        def run(state, frozen, parts):
            if next(calls) == 2 and "killed" not in stopped:
                if "Ctrl-C" in stopped:
                    stopped.append("killed")
                    raise KeyboardInterrupt
                stopped.append("Ctrl-C")
                signal.raise_signal(signal.SIGINT)
            return step(state, frozen, parts)

        return run

    monkeypatch.setattr(StageContext, "map", stopping_map)
    monkeypatch.setattr(training, "make_step", stopping_make_step)
    return stopped


def test_workers_make_what_one_process_makes(finished, tmp_path, make_config):
    """Of the evaluated method, every map that they may; with an opened run of their own."""
    executor, (straight, expected) = InProcess(1), finished
    report = pipeline.run(make_config(), tmp_path / "run", executor=executor)
    assert without_times(report["methods"]) == without_times(expected["methods"])
    assert read_predictions(tmp_path / "run") == read_predictions(straight)
    assert [task.file for task in executor.tasks] == [
        "embeddings.npy",
        "lengths.npy",
        "documents.jsonl",
        "verbalised.jsonl",
        "scores.jsonl",
        "closed_book.jsonl",
        "reference.jsonl",
        "datastore.npz",
        "answers_direct.jsonl",
        "passes.jsonl",
    ]


def test_interrupted_everywhere(finished, tmp_path, make_config, interruptions):
    """The same command until it ends gives what one that was left alone gives, to the bit."""
    workdir, count = tmp_path / "run", 0
    while True:
        try:
            report = pipeline.run(make_config(), workdir)
            break
        except KeyboardInterrupt:
            count += 1
            assert len(interruptions) == count
            assert not (workdir / "report.json").exists()
    assert interruptions == [
        "embeddings.npy",
        "lengths.npy",
        "documents.jsonl",
        "verbalised.jsonl",
        "scores.jsonl",
        "closed_book.jsonl",
        "Ctrl-C",
        "reference.jsonl",
        "killed",
        "datastore.npz",
        "answers_direct.jsonl",
        "passes.jsonl",
    ]
    straight, expected = finished
    assert without_times(report["methods"]) == without_times(expected["methods"])
    assert read_predictions(workdir) == read_predictions(straight)
    for file in (
        "lengths/longest.json",
        "contexts/contexts.jsonl",
        "labels/labels.jsonl",
        "stage1/log.jsonl",
        "reference/reference.jsonl",
        "stage2/log.jsonl",
        "datastore/datastore.npz",
    ):
        ours, theirs = ((folder / "stages" / file).read_bytes() for folder in (workdir, straight))
        assert ours == theirs, file
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("checkpoints"))


def test_all_weights(copied, make_config):
    session = Session(
        build(SRRAGConfig, make_config(**{"tuning.mode": "full", "stage1.learning_rate": 1e-3}))
    )
    records = run_stages(pipeline.list_stages(session)[:9], copied, overwrite=True)
    assert list_names({"stages": records}, reused=False) == ["stage1", "reference", "stage2"]
    before = jax.tree.map(np.asarray, session.base.params)
    first, second = (
        session.trainable.load_merged(copied / "stages" / stage / "params")
        for stage in ("stage1", "stage2")
    )
    for one, other in ((before, first), (first, second)):
        changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)
        assert min(jax.tree.leaves(changes)) > 1e-5
        new = np.abs(one["embed"]["embedding"] - other["embed"]["embedding"])[-4:]
        assert (new.max(axis=1) > 1e-5).all()
    fresh = Session(session.config).base.params
    jax.tree.map(np.testing.assert_array_equal, before, fresh)


EVERYTHING_OF_THE_MODEL = set(STAGES[2:])
EVERYTHING_OF_THE_QUESTIONS = set(STAGES[3:])
SWAPPED = (
    SourceConfig(name="Wiki", token="<Wiki>", kind="search"),
    SourceConfig(name="Self", token="<Self>", kind="verbalise"),
)


@pytest.mark.parametrize(
    ("field", "value", "affected"),
    [
        ("world.seed", 1, {"corpus"}),
        ("train_questions", 6, EVERYTHING_OF_THE_QUESTIONS),
        ("index.backend", "exact" if BACKEND == "scann" else "scann", {"index"}),
        ("encoder.max_length", 40, {"index", "demonstrations", "contexts", "datastore"}),
        ("verbalise.pool", 9, {"demonstrations"}),
        ("verbalise.max_tokens", 9, {"demonstrations", "contexts", "datastore", "evaluate"}),
        ("contexts", 5, {"demonstrations", "contexts"}),
        ("seed", 1, EVERYTHING_OF_THE_QUESTIONS),
        ("data.seed", 1, {"corpus"}),
        ("model.max_text", 9, {"lengths", "contexts", "datastore", "evaluate"}),
        ("questions", 3, {"evaluate"}),
        ("model.dtype", "bfloat16", EVERYTHING_OF_THE_MODEL),
        ("model.int8", True, EVERYTHING_OF_THE_MODEL),
        ("model.vocab_multiple", 8, EVERYTHING_OF_THE_MODEL),
        ("sources", SWAPPED, EVERYTHING_OF_THE_MODEL),
        ("verbalise.only_answered", False, {"demonstrations"}),
        ("label.rule", "mean", {"labels"}),
        ("extra_mean", 0.5, {"stage1", "reference", "stage2"}),
        ("loss_reduction", "mean", {"stage1", "reference", "stage2"}),
        ("tuning.rank", 3, {"stage1", "reference", "stage2"}),
        ("stage1.epochs", 2, {"stage1"}),
        ("stage2.beta", 0.1, {"stage2"}),
        ("datastore.layer", 2, {"datastore", "evaluate"}),
        ("answer.passages", 2, {"datastore", "evaluate"}),
        ("datastore.k", 7, {"evaluate"}),
        ("datastore.metric", "dot", {"datastore", "evaluate"}),
        ("route.tau", 0.9, {"evaluate"}),
        ("route.decision", "argmax_product", {"evaluate"}),
    ],
)
def test_a_setting_is_declared_by_the_stages_that_read_it(
    session, make_config, field, value, affected
):
    changed = build(SRRAGConfig, make_config(**{field: value}))
    pairs = zip(*map(pipeline.list_stages, (session, Session(changed))), strict=True)
    found = {
        ours.name for ours, theirs in pairs if to_json(ours.settings) != to_json(theirs.settings)
    }
    assert found >= affected
    # Nothing before the first of them.
    assert min(map(STAGES.index, found)) == min(map(STAGES.index, affected))


# Bad input.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"route.tau": 1.5}, "config.route.tau=1.5: must be from 0 to 1"),
        ({"sources": SWAPPED[:1]}, "config.sources: routing needs at least two sources"),
        (
            {"sources": ()},
            "one of kind 'verbalise' and the others of kind 'search'; there are none",
        ),
        (
            {"sources": (*SWAPPED, SourceConfig("Me", "<Me>", "verbalise"))},
            "there are ['search', 'verbalise', 'verbalise']",
        ),
        ({"model.name": "no-such-model"}, "no-such-model is neither a folder nor a known model"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, make_config, changes, message):
    with pytest.raises(RagJaxError, match=re.escape(message)) as caught:
        pipeline.run(make_config(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def check_refused(config, workdir, stage, message):
    """The run stops at a stage with a message of one line; what was made before is kept."""

    def read_record(name):
        path = workdir / "stages" / name / "stage.json"
        return path.read_bytes() if path.exists() else None

    before = {name: read_record(name) for name in STAGES}
    with pytest.raises(RagJaxError, match=re.escape(message)) as caught:
        pipeline.run(config, workdir, overwrite=True)
    assert "\n" not in str(caught.value)
    at = STAGES.index(stage)
    assert all(map(read_record, STAGES[:at]))
    assert all(read_record(name) == before[name] for name in STAGES[at:])


def test_no_questions_to_evaluate(tmp_path, make_config):
    message = "config.data: there are no 'dev' questions with answers"
    check_refused(make_config(evaluate_on="dev"), tmp_path / "run", "corpus", message)


def test_a_folder_without_training_questions(tmp_path, make_config):
    folder = write_popqa(tmp_path / "popqa", splits=["test"])
    message = "config.data: there are no 'train' questions with answers"
    check_refused(make_config(**{"data.path": str(folder)}), tmp_path / "run", "corpus", message)


def write_popqa(folder, *, splits, passages=1):
    """Twelve questions a split; of every other one the popularity is not known."""
    folder.mkdir()
    records = [{"id": i, "title": "Ada", "text": "A poet."} for i in range(passages)]
    write_jsonl(folder / "passages.jsonl", records)
    for split in splits:
        rows = [
            {"idx": i, "question": "Who?", "answers": ["poet"], "prop": "job", "s_pop": 60 * i}
            | ({"s_pop": None, "longtail": i == 1} if i % 2 else {})
            for i in range(12)
        ]
        write_jsonl(folder / f"{split}_questions.jsonl", rows)
    return folder


def test_the_long_tail_of_popqa(tmp_path, make_config):
    folder = write_popqa(tmp_path / "popqa", splits=["train", "dev"], passages=3)
    changes = {"data.path": str(folder), "data.longtail": True, "evaluate_on": "dev"}
    settings = build(SRRAGConfig, make_config(**changes, train_questions=7))
    session = Session(settings)
    run_stages(pipeline.list_stages(session)[:1], tmp_path / "run")
    open_stage(session, tmp_path / "run", "corpus")
    assert len(session.train_questions) == 7
    assert [(q.id, q.popularity) for q in session.questions] == [("0", 0), ("1", None)]
    fewer = Session(replace(settings, questions=1))
    open_stage(fewer, tmp_path / "run", "corpus")
    assert len(fewer.questions) == 1


# Another dataset.


def test_evaluate_on_another_dataset(finished, make_config, tmp_path):
    workdir, before = finished[0], hash_files(finished[0])
    data = DataConfig(path=str(write_popqa(tmp_path / "popqa", splits=["test"])))
    evaluate = partial(evaluate_on, make_config(), workdir, data, "test", tmp_path / "out")
    report = evaluate()
    assert list_names(report, reused=False) == ["corpus", "index", "lengths", "evaluate"]
    assert list(report["methods"]) == METHODS
    assert all(numbers["n"] == 12 for numbers in report["methods"].values())
    records = read_jsonl(tmp_path / "out" / "predictions" / "retrieve.jsonl")
    assert {record["knowledge"] for record in records} == {"[1] Ada: A poet."}
    assert [record["popularity"] for record in records][:3] == [0, None, 120]
    assert list_names(evaluate(), reused=False) == []
    assert hash_files(workdir) == before


def write_world(folder, *, train, test):
    """Another world of questions and passages than the run's."""
    world = build_world(cities=7, countries=4, train=train, dev=0, test=test, seed=5)
    folder.mkdir()
    write_jsonl(folder / "passages.jsonl", world.passages)
    for split in ("train", "test"):
        records = [
            {"id": q.id, "question": q.question, "answers": list(q.answers)}
            for q in world.questions[split]
        ]
        write_jsonl(folder / f"{split}_questions.jsonl", records)
    return folder


def test_a_datastore_grows_by_questions_of_another_dataset(
    finished, make_config, session, tmp_path
):
    """Nothing is trained; the votes are those of the run's entries and the new ones together."""
    workdir, before = finished[0], hash_files(finished[0])
    data = DataConfig(path=str(write_world(tmp_path / "other", train=6, test=5)))
    config, out = make_config(), tmp_path / "out"
    report = evaluate_with_entries(config, workdir, data, "test", out, entries=4)
    made = ["corpus", "index", "lengths", "entries", "evaluate"]
    assert list_names(report, reused=False) == made
    assert hash_files(workdir) == before
    assert list(report["methods"]) == [*METHODS[:4], "srrag_grown", "without_knn"]
    assert report["analysis"]["entries"]["n"] == 4
    assert list(report["analysis"]["routing"]) == ["srrag", "srrag_grown", "without_knn"]

    paths = [workdir / "stages" / "datastore", out / "stages" / "entries"]
    keys, labels, ids = [], [], []
    for path in paths:
        with np.load(path / "datastore.npz", allow_pickle=False) as stored:
            keys.append(stored["key"])
            labels.append(stored["source"])
            ids.append(stored["id"].tolist())
    read = read_json(out / "stages" / "corpus" / "questions.json")
    assert len(ids[1]) == 4 and set(ids[1]) <= {record["id"] for record in read["train"]}
    context = open_stage(session, workdir, "evaluate")
    engine = session.open_engine(context, context.path("stage2", "params"))
    rows = {
        name: read_jsonl(out / "predictions" / f"{name}.jsonl")
        for name in ("srrag", "srrag_grown", "verbalise", "retrieve")
    }
    tau = config.route.tau
    for old, new, written, searched in zip(*rows.values(), strict=True):
        (key,) = np.asarray(engine.route([new["question"]]).key)[:1]
        for row, used in ((old, 1), (new, 2)):
            scores = np.concatenate(keys[:used]) @ (key / np.linalg.norm(key))
            fifth, voted = np.sort(scores)[-5], np.concatenate(labels[:used])
            # Of entries as near as the fifth, to rounding, any may vote.
            sure, tied = scores > fifth + 1e-5, abs(scores - fifth) <= 1e-5
            left, share = 5 - sure.sum(), row["votes"][1]
            low = voted[sure].sum() + max(0, left - (voted[tied] == 0).sum())
            high = voted[sure].sum() + min(left, voted[tied].sum())
            assert low <= round(5 * share) <= high
            source = searched if row["probabilities"][1] * share > tau else written
            assert row["prediction"] == source["prediction"]
            assert row["source"] == source["source"]
    assert any(old["votes"] != new["votes"] for old, new in zip(*[*rows.values()][:2], strict=True))
    # The same call again keeps everything; without entries the other rows are the same.
    again = evaluate_with_entries(config, workdir, data, "test", out, entries=4)
    assert list_names(again, reused=False) == []
    plain = evaluate_on(config, workdir, data, "test", tmp_path / "plain")
    assert without_times(plain["methods"]) == {
        name: numbers
        for name, numbers in without_times(report["methods"]).items()
        if name != "srrag_grown"
    }


def test_more_entries_than_there_are_questions(finished, make_config, tmp_path):
    data = DataConfig(path=str(write_world(tmp_path / "other", train=3, test=2)))
    with pytest.raises(RagJaxError, match="--entries=4: there are 3 'train' questions"):
        evaluate_with_entries(make_config(), finished[0], data, "test", tmp_path / "out", entries=4)


def hash_files(folder):
    return {path: hash_file(path) for path in folder.rglob("*") if path.is_file()}


def test_evaluate_on_without_a_finished_run(make_config, tmp_path):
    data = DataConfig(path=str(tmp_path))
    with pytest.raises(RagJaxError, match="there is no finished run; run launch/train.py"):
        evaluate_on(make_config(), tmp_path / "none", data, "test", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_the_model_lacks(copied, make_config):
    config = make_config(**{"datastore.layer": 3})
    message = "config.datastore.layer=3: the model has 2 layers"
    check_refused(config, copied, "datastore", message)


def test_a_source_token_that_is_taken(copied, make_config):
    sources = (SWAPPED[0], SourceConfig(name="Self", token="<|im_end|>", kind="verbalise"))
    config = make_config(sources=sources)
    check_refused(config, copied, "lengths", "new tokens: '<|im_end|>' is taken")


def test_a_datastore_of_one_label(copied, session, capsys):
    """The run says so and goes on: its votes are all alike."""
    path = copied / "stages" / "datastore"
    (path / "stage.json").unlink()
    with np.load(path / "datastore.npz", allow_pickle=False) as stored:
        arrays = {**stored, "source": np.ones(12, np.int32)}
    np.savez(path / "datastore.npz", **arrays)
    shutil.rmtree(copied / "stages" / "evaluate")
    records = run_stages(pipeline.list_stages(Session(session.config)), copied)
    assert list_names({"stages": records}, reused=False) == ["datastore", "evaluate"]
    assert "stage datastore: Wiki works better for every training" in capsys.readouterr().err
    assert read_json(path / "statistics.json")["share"] == {"Self": 0, "Wiki": 1}
    rows = read_jsonl(copied / "stages" / "evaluate" / "srrag.jsonl")
    assert all(row["votes"] == [0, 1] for row in rows)


def test_models_of_the_other_kind(copied, make_config, llama_folder, bert_folder):
    config = make_config(**{"model.name": str(bert_folder)})
    message = f"config.model.name={bert_folder}: is no language model"
    check_refused(config, copied, "lengths", message)
    config = make_config(**{"encoder.name": str(llama_folder)})
    check_refused(config, copied, "index", f"config.encoder.name={llama_folder}: is no encoder")


def test_weights_cut_short(copied, make_config, llama_folder, tmp_path):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "llama"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config = make_config(**{"model.name": str(folder)})
    check_refused(config, copied, "lengths", "model.safetensors is truncated")


def test_weights_of_another_shape(copied, make_config, bert_folder, tmp_path):
    folder = Path(shutil.copytree(bert_folder, tmp_path / "bert"))
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"] = tensors["embeddings.LayerNorm.bias"][:-1]
    save_file(tensors, folder / "model.safetensors")
    config = make_config(**{"encoder.name": str(folder)})
    message = "embeddings.LayerNorm.bias has shape [15], the config wants [16]"
    check_refused(config, copied, "index", message)


def test_the_command_line(tmp_path):
    command = [sys.executable, "launch/train.py", "--config=configs/srrag.py"]
    command += ["--config.route.tau=1.5", f"--workdir={tmp_path / 'run'}"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: config.route.tau=1.5: must be from 0 to 1")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_evaluate_the_model_as_loaded(finished, make_config, tmp_path, capsys):
    """Rows that need a datastore are left out; others are of the model before its first step."""
    config, data = make_config(), evaluated.write_world(tmp_path / "other", test=3)
    report = evaluate_on(config, None, data, "test", tmp_path / "loaded")
    made = ["corpus", "index", "lengths", "evaluate"]
    methods = ["direct", "verbalise", "retrieve", "without_knn"]
    assert list_names(report, reused=False) == made and list(report["methods"]) == methods
    assert "left out, as an untrained model has no datastore to choose by: srrag" in "".join(
        capsys.readouterr()
    )
    start, session = tmp_path / "start", Session(build(SRRAGConfig, config))
    save_tree(start / "stage2" / "params", session.trainable.start())
    shutil.copytree(finished[0] / "stages" / "datastore", start / "datastore")
    direct = evaluated.evaluate_directly(pipeline, Session, config, data, start, made, methods)
    answers = evaluated.read_answers(tmp_path / "loaded" / "predictions", methods)
    for method in methods:
        for row, expected in zip(answers[method], direct[method], strict=True):
            assert row["prediction"] == expected["prediction"]
            assert row["source"] == expected["source"] if "source" in row else method == "direct"
    # A threshold that was to be tuned cannot be.
    config = make_config(**{"route.tau": None})
    report = evaluate_on(config, None, data, "test", tmp_path / "tuned")
    assert list(report["methods"]) == methods[:3]


def test_evaluate_as_the_trained_weights_answer(finished, make_config, tmp_path):
    made = ["corpus", "index", "lengths", "evaluate"]
    shared = {"trained": ["labels", "stage2", "datastore"], "made": made}
    config = make_config()
    evaluated.check_evaluation(pipeline, Session, config, finished, tmp_path, **shared)
