"""Datasets that TensorFlow Datasets prepared: our own builder's, and others' features."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data import gazetteer_tfds
from rag_jax.data.formats import describe_source, read_collection, tfds
from rag_jax.data.formats.fields import Context
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.gazetteer import build_world
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.errors import RagJaxError

SETTINGS = {"cities": 5, "train": 4, "dev": 2, "test": 2}


def test_a_prepared_world(tmp_path):
    gazetteer_tfds.prepare_world(tmp_path, **SETTINGS)
    world = build_world(**SETTINGS)
    data = DataConfig(path=str(tmp_path))
    found = read_collection(data, WorldConfig())
    assert [vars(p) for p in found.passages] == [vars(p) for p in world.passages]
    assert found.questions == {
        split: [
            Question(q.id, q.question, q.answers, {q.passage_id: 1}, popularity=q.popularity)
            for q in asked
        ]
        for split, asked in world.questions.items()
    }
    files = describe_source(data, WorldConfig())["files"]
    assert sum("array_record" in name for name in files) == 4
    (dataset,) = (d for d in tfds.list_datasets(tmp_path) if "passages" in str(d))
    (dataset / "features.json").write_text("{")
    with pytest.raises(RagJaxError, match="is not a prepared dataset") as caught:
        read_collection(data, WorldConfig())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_names_no_code_to_run(tmp_path, monkeypatch, spelling, nested):
    """The library would import the module of any class that features.json names."""
    gazetteer_tfds.prepare_world(tmp_path / "data", **SETTINGS)
    (tmp_path / "planted.py").write_text("raise SystemExit('code of the folder ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for dataset in tfds.list_datasets(tmp_path / "data"):
        path = dataset / "features.json"
        features = json.loads(path.read_text())
        inner = features["featuresDict"]["features"]["id"] if nested else features
        inner.pop("pythonClassName")
        inner[spelling] = "planted.Feature"
        path.write_text(json.dumps(features))
    with pytest.raises(RagJaxError, match=r"features of the kind 'planted.Feature' are not read"):
        read_collection(DataConfig(str(tmp_path / "data")), WorldConfig())
    assert "planted" not in sys.modules


PLACE = Place(Path("validation"), 1, 1)
ANSWERS = np.array([b"x", b"x", b"y"], object)


@pytest.mark.parametrize(
    ("example", "id", "answers", "context"),
    [
        (
            {
                "id": b"s1",
                "title": b"T",
                "context": b"U",
                "question": b"Where?",
                "answers": {"text": ANSWERS, "answer_start": np.array([0, 0, 5])},
            },
            "s1",
            ("x", "y"),
            "U",
        ),
        (
            {
                "question": b"Where?",
                "question_id": b"tc_1",
                "answer": {"value": b"x", "aliases": ANSWERS, "type": b""},
            },
            "tc_1",
            ("x", "y"),
            None,
        ),
        ({"question": b"Where?", "answer": np.array([b"x"], object)}, "validation:1", ("x",), None),
        ({"question": b"Where?", "answer": b"x", "id": b"7"}, "7", ("x",), None),
        (
            {"question": b"Where?", "title": b"T", "passage": b"U", "answer": np.bool_(True)},
            "validation:1",
            ("yes",),
            "U",
        ),
    ],
)
def test_features_of_others(example, id, answers, context):
    example = tfds._simplify(example, PLACE)
    assert tfds.is_question(example)
    item = tfds.parse(example, PLACE)
    question = item.question
    assert (question.id, question.question, question.answers) == (id, "Where?", answers)
    wanted = () if context is None else (Context(Passage("", "T", "U"), 1),)
    assert item.contexts == wanted


def test_an_answer_that_is_not_published():
    """TriviaQA's test split has one value for all questions."""
    answer = {"value": b"<unk>", "aliases": np.array([], object), "normalized_value": b"<unk>"}
    example = {"question": b"Who?", "question_id": b"t", "answer": answer}
    assert tfds.parse(tfds._simplify(example, PLACE), PLACE).question.answers == ()


def test_underscores_in_titles():
    """SQuAD's stand for spaces."""
    example = {"id": b"1", "question": b"Who?", "title": b"New_York", "context": b"c"}
    for answers, title in (({"text": ANSWERS}, "New York"), (ANSWERS, "New_York")):
        simple = tfds._simplify(example | {"answers": answers}, PLACE)
        (context,) = tfds.parse(simple, PLACE).contexts
        assert context.passage.title == title


def test_bad_examples():
    with pytest.raises(BadLineError, match="validation:1: is not UTF-8"):
        tfds._simplify({"question": b"\xff"}, PLACE)
    with pytest.raises(BadLineError, match="validation:1: answers must be a list of strings"):
        tfds.parse({"id": "a", "question": "Where?", "answer": 3}, PLACE)


def test_an_empty_folder(tmp_path):
    with pytest.raises(RagJaxError, match="holds no questions"):
        read_collection(DataConfig(str(tmp_path), "tfds"), WorldConfig())
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(RagJaxError, match="is not a prepared dataset"):
        list(tfds.read_examples(tmp_path, BadLines()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"splits": [{"name": "a", "filepathTemplate": "{DIRNAME}/../b"}]},
            "names files elsewhere",
        ),
        ({"splits": [{"name": "/etc/a"}]}, "dataset_info.json names files elsewhere: '/etc/a'"),
        ({"name": "../other"}, "dataset_info.json names files elsewhere: '../other'"),
        ({"splits": 3}, "is not a prepared dataset: TypeError"),
        ({"splits": [{"shardLengths": ["1"] * 10_001}]}, "10,001 shards, the limit is 10,000"),
        ([], "is not a prepared dataset: AttributeError"),
    ],
)
def test_a_dataset_names_no_files_elsewhere(tmp_path, change, message):
    (tmp_path / "features.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text(json.dumps(change))
    with pytest.raises(RagJaxError, match=message):
        list(tfds.read_examples(tmp_path, BadLines()))


def test_a_dataset_has_not_very_many_features(tmp_path):
    kind = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "features.json").write_text(json.dumps({str(i): kind for i in range(1001)}))
    with pytest.raises(RagJaxError, match=r"features\.json: has more than 1000 features"):
        list(tfds.read_examples(tmp_path, BadLines()))


def test_a_dataset_is_files(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    os.mkfifo(tmp_path / "features.json")
    with pytest.raises(RagJaxError, match="features.json is a named pipe in the place of a file"):
        list(tfds.read_examples(tmp_path, BadLines()))
