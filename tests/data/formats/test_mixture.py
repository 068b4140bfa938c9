"""Mixtures of folders: one corpus, joined splits, and the dataset of every question."""

import json
import os
from pathlib import Path

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import copy_collection, describe_source, read_collection
from rag_jax.data.questions import load_collection
from rag_jax.runtime.errors import RagJaxError

SHARED = {"title": "Nile", "text": "The Nile is a river."}


def write(folder: Path, **files: list[dict]) -> Path:
    folder.mkdir()
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> str:
    """Folders with training questions, with a dev split, and with test questions alone."""
    passages = [{"id": "1", **SHARED}, {"id": "2", "title": "Lima", "text": "In Peru."}]
    asked = [
        {"id": str(i), "question": f"q{i}?", "answers": ["a"], "passage_id": "1"} for i in range(4)
    ]
    rivers = write(tmp_path / "rivers", passages=passages, train_questions=asked)
    other = [{"id": "1", "title": "Oslo", "text": "In Norway."}, {"id": "9", **SHARED}]
    one = [{"id": "0", "question": "r?", "answers": ["b"], "passage_id": "9"}]
    towns = write(
        tmp_path / "towns",
        passages=other,
        train_questions=one,
        dev_questions=one,
        test_questions=one,
    )
    choices = {"id": "x", "question": {"stem": "Is it?", "choices": []}, "answerKey": "A"}
    choices["question"]["choices"] = [{"label": k, "text": t} for k, t in ("Ay", "Bn")]
    arc = write(tmp_path / "arc", test=[choices])
    return os.pathsep.join(map(str, (rivers, towns, arc)))


def test_a_mixture_is_one_corpus_with_joined_splits(folders: str) -> None:
    found = read_collection(DataConfig(folders), WorldConfig())
    assert [p.id for p in found.passages] == ["rivers/1", "rivers/2", "towns/1"]
    train, dev, test = (found.questions[split] for split in ("train", "dev", "test"))
    assert [q.id for q in train] == [*(f"rivers/{i}" for i in range(4)), "towns/0"]
    assert [q.dataset for q in train] == ["rivers"] * 4 + ["towns"]
    # The passage that both folders hold has one id, whichever folder's question names it.
    assert train[4].relevant == train[0].relevant == {"rivers/1": 1}
    assert [q.id for q in dev] == ["towns/0"]
    assert [(q.dataset, q.answers) for q in test] == [("towns", ("b",)), ("arc", ("A",))]


def test_folders_of_a_mixture_named_from_where_one_stands(folders, monkeypatch) -> None:
    rivers, towns, _ = folders.split(os.pathsep)
    monkeypatch.chdir(towns)
    found = read_collection(DataConfig(os.pathsep.join((rivers, ".", "../arc"))), WorldConfig())
    assert [p.id for p in found.passages] == ["rivers/1", "rivers/2", "towns/1"]
    assert [q.dataset for q in found.questions["test"]] == ["towns", "arc"]
    with pytest.raises(RagJaxError, match="have the same name"):
        read_collection(DataConfig(os.pathsep.join((towns, "."))), WorldConfig())


def test_questions_are_held_out_where_there_is_no_dev_split(folders: str) -> None:
    found = read_collection(DataConfig(folders, held_out=1, seed=3), WorldConfig())
    assert [q.dataset for q in found.questions["dev"]] == ["rivers", "towns"]
    assert len(found.questions["train"]) == 4
    towns = folders.split(os.pathsep)[1]
    with pytest.raises(RagJaxError, match="held_out=1: each folder has a dev split or no training"):
        read_collection(
            DataConfig(f"{towns}{os.pathsep}{folders.split(':')[2]}", held_out=1), WorldConfig()
        )


def test_a_stored_mixture_is_loaded_as_read(folders: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_collection(copy, DataConfig(folders), WorldConfig(), check=lambda found: None)
    wanted, found = read_collection(DataConfig(folders), WorldConfig()), load_collection(copy)
    assert list(found.passages) == list(wanted.passages)
    assert found.questions == wanted.questions
    names = {path.name for path in copy.iterdir()}
    assert names == {"passages.jsonl", "passages.offsets.npy", "questions.json"}


def test_a_failed_copy_leaves_nothing(folders: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (Path(folders.split(os.pathsep)[1]) / "dev_questions.jsonl").write_text("{\n")
    with pytest.raises(RagJaxError, match="dev_questions.jsonl:1"):
        copy_collection(copy, DataConfig(folders), WorldConfig(), check=lambda found: None)
    assert not list(copy.iterdir())


def test_a_change_in_any_folder_is_seen(folders: str) -> None:
    before = describe_source(DataConfig(folders), WorldConfig())
    assert set(before["files"]) == {"rivers", "towns", "arc"}
    path = Path(folders.split(os.pathsep)[2]) / "test.jsonl"
    path.write_text(path.read_text().replace("Is it?", "Was it?"))
    after = describe_source(DataConfig(folders), WorldConfig())
    assert [n for n in before["files"] if before["files"][n] != after["files"][n]] == ["arc"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a:", "a folder's name is blank"),
        (":a", "a folder's name is blank"),
        ("x/a:y/a", "x/a and y/a have the same name"),
        ("a:a", "a and a have the same name"),
    ],
)
def test_names_that_leave_a_doubt(path: str, message: str) -> None:
    with pytest.raises(RagJaxError, match=message):
        read_collection(DataConfig(path), WorldConfig())


def test_a_folder_with_a_colon_in_its_name(folders: str, tmp_path: Path) -> None:
    first = Path(folders.split(os.pathsep)[0])
    first.rename(tmp_path / "a:b")
    found = read_collection(DataConfig(str(tmp_path / "a:b")), WorldConfig())
    assert [p.id for p in found.passages] == ["1", "2"]


def test_home_folders_in_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    assert DataConfig("~/a:b:~/c").path == "/home/x/a:b:/home/x/c"


def test_no_folder_has_passages(folders: str, tmp_path: Path) -> None:
    arc = folders.split(os.pathsep)[2]
    other = tmp_path / "other"
    other.mkdir()
    (other / "test.jsonl").write_bytes((Path(arc) / "test.jsonl").read_bytes())
    with pytest.raises(RagJaxError, match="holds no passages"):
        read_collection(DataConfig(f"{arc}:{other}"), WorldConfig())
