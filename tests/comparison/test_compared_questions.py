"""The data of a comparison: chosen once, kept, written whole, and read by every system."""

import json
from dataclasses import replace

import pytest

from rag_jax.comparison.config import CompareConfig
from rag_jax.comparison.questions import (
    count_passages,
    describe_data,
    is_prepared,
    prepare_data,
    read_questions,
)
from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.runtime.errors import RagJaxError


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return folder


def ask(id, answers=("yes",), **more):
    return {"id": id, "question": f"Is it {id}?", "answers": list(answers), **more}


@pytest.fixture
def source(tmp_path):
    """A folder with a question without an answer, and one without a relevant passage."""
    passages = [{"_id": f"p{i}", "title": f"P {i}", "text": "It is.\nSo."} for i in range(3)]
    passages.append({"_id": "empty", "title": "", "text": ""})
    test = [ask("a", passage_id="p0"), ask("b", ()), ask("c"), ask("d", passage_id="p1")]
    train = [ask(f"t{i}", passage_id="p2", popularity=i) for i in range(4)]
    return write(tmp_path / "source", passages=passages, test_questions=test, train_questions=train)


def make(config, folder):
    described = describe_data(config)
    prepare_data(config, folder, described)
    return described


def choose(source, tmp_path, **changes):
    config = CompareConfig(data=DataConfig(path=str(source)), **changes)
    folder = tmp_path / "data"
    make(config, folder)
    return [question.id for question in read_questions(folder, config.evaluate_on)]


def test_questions_that_every_system_is_asked(source, tmp_path):
    assert choose(source, tmp_path) == ["a", "d"]  # Self-Retrieval is asked no others
    assert choose(source, tmp_path, systems=("rag", "prag")) == ["a", "c", "d"]
    drawn = choose(source, tmp_path, systems=("rag",), questions=2, train_questions=3)
    assert len(drawn) == 2 and len(read_questions(tmp_path / "data", "train")) == 3
    assert count_passages(tmp_path / "data") == 4


def test_systems_read_what_was_chosen_without_loss(source, tmp_path):
    config = CompareConfig(data=DataConfig(path=str(source)))
    before = read_collection(config.data, WorldConfig())
    make(config, tmp_path / "data")
    after = read_collection(DataConfig(path=str(tmp_path / "data")), WorldConfig())
    assert list(after.passages) == list(before.passages)
    assert after.questions["train"] == before.questions["train"]
    wanted = [question for question in before.questions["test"] if question.id in ("a", "d")]
    assert after.questions["test"] == read_questions(tmp_path / "data", "test") == wanted


def test_relevant_passages_that_are_not_in_the_corpus(tmp_path, capsys):
    """As in the open setting of HotpotQA, whose paragraphs need not be the right ones."""
    context = [["Here", ["It is."]], ["Other", ["It is not."]]]
    records = [
        {"_id": id, "question": "Is it?", "answer": "yes", "type": "bridge", "context": context}
        | {"supporting_facts": [[title, 0] for title in titles]}
        for id, titles in {"a": ("Gone", "Here"), "b": ("Gone", "Lost")}.items()
    ]
    source = tmp_path / "source"
    source.mkdir()
    (source / "hotpot_dev_fullwiki_v1.json").write_text(json.dumps(records), "utf-8")
    options = {"systems": ("rag",), "evaluate_on": "dev"}
    assert choose(source, tmp_path, **options) == ["a", "b"]
    assert "2 relevant passages are not in the corpus" in capsys.readouterr().err
    read = read_collection(DataConfig(path=str(tmp_path / "data")), WorldConfig())
    assert [q.relevant for q in read.questions["dev"]] == [{"Here": 1}, {}]


def test_the_built_in_world_without_loss(tmp_path):
    world = WorldConfig(cities=8, countries=12, train=10, dev=5, test=6)
    config = CompareConfig(world=world)
    make(config, tmp_path / "data")
    before = read_collection(DataConfig(), world)
    after = read_collection(DataConfig(path=str(tmp_path / "data")), WorldConfig())
    assert (list(after.passages), after.questions) == (list(before.passages), before.questions)


def test_data_is_kept_until_something_changes(source, tmp_path):
    config, folder = CompareConfig(data=DataConfig(path=str(source))), tmp_path / "data"
    described = make(config, folder)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_data(config, folder, described)
    assert times == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not is_prepared(folder, describe_data(replace(config, questions=1)))
    with (source / "test_questions.jsonl").open("a") as file:
        file.write("\n" + json.dumps(ask("e", passage_id="p0")))
    assert not is_prepared(folder, describe_data(config))
    make(config, folder)
    assert [q.id for q in read_questions(folder, "test")] == ["a", "d", "e"]


def test_data_is_kept_with_other_systems_that_are_asked_the_same(source, tmp_path):
    config, folder = CompareConfig(data=DataConfig(path=str(source))), tmp_path / "data"
    fewer = replace(config, systems=("rag",))
    make(config, folder)
    assert not is_prepared(folder, describe_data(fewer))  # which is also asked "c"
    write(source, test_questions=[ask("a", passage_id="p0")])
    make(config, folder)
    assert is_prepared(folder, describe_data(fewer))


def test_data_without_a_question_leaves_nothing(source, tmp_path):
    config = CompareConfig(data=DataConfig(path=str(source)), evaluate_on="dev")
    with pytest.raises(RagJaxError, match=r"evaluate_on='dev': .* no such questions .* but train"):
        make(config, tmp_path / "runs" / "data")
    assert not (tmp_path / "runs" / "data").exists()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == []
