"""Folders that Hugging Face's `datasets` saved: what is read of them, and what is refused.

They are written with pyarrow as `save_to_disk` writes them; the parity suite has its own.
"""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
from damage import damage_bytes, damage_json, refuses_in_a_line
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exported_rows import OPENBOOKQA, PASSAGE, SQUAD, TRIVIAQA

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import describe_source, read_collection, read_passages
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.records import read_records
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

pyarrow = pytest.importorskip("pyarrow", reason="reads Arrow")

QUESTION = {"id": "q", "question": "Where?", "answers": ["x"], "passage_id": "p"}


def save(folder, rows, *, split=None, files=1, features=None):
    """Writes rows as `Dataset.save_to_disk` does, two to a batch."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    size = -(-len(rows) // files)
    for i, name in enumerate(names):
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table.slice(i * size, size), max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return folder


def save_splits(folder, **splits):
    for name, rows in splits.items():
        save(folder / name, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return folder


def read(folder):
    return read_collection(DataConfig(str(folder)), WorldConfig())


def write_lines(folder, **files):
    folder.mkdir()
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


@pytest.mark.parametrize("rows", [[QUESTION], SQUAD, TRIVIAQA, [OPENBOOKQA]])
def test_rows_are_read_as_lines_are(tmp_path, rows):
    """Splits are named as files are; their columns are those of all rows, some without values."""
    splits = {"train": rows, "validation": rows[:1], "test": rows[-1:]}
    splits |= {"corpus": [PASSAGE]} if rows is not SQUAD else {}
    lines = read(write_lines(tmp_path / "lines", **splits))
    assert read(save_splits(tmp_path / "saved", **splits)) == lines
    assert set(lines.questions) == {"train", "dev", "test"}


def test_one_dataset(tmp_path):
    """Several files are read one after the other; a split that the dataset knows is its split."""
    rows = [QUESTION | {"id": str(i), "positive_ctxs": [PASSAGE]} for i in range(7)]
    found = read(save(tmp_path / "squad", rows, files=2, split="validation"))
    assert [question.id for question in found.questions["dev"]] == [str(i) for i in range(7)]
    assert found.passages == [Passage("p", "Riga", PASSAGE["text"])]
    named = read(save(tmp_path / "test_questions", rows, split="train"))
    assert list(named.questions) == ["test"]  # a part that `train_test_split` made
    assert list(read(save(tmp_path / "plain", rows)).questions) == ["test"]


def test_datasets_and_files_in_one_folder(tmp_path, caplog):
    """A saved dataset stands in the place of a file, whose name says what it holds."""
    save(tmp_path / "passages", [PASSAGE])
    save_splits(tmp_path / "mine", validation=[QUESTION])
    (tmp_path / "train_questions.jsonl").write_text(json.dumps(QUESTION))
    (tmp_path / "mine" / "validation" / "cache-1.arrow").write_bytes(b"of the library's own")
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path)
    assert list(found.questions) == ["train"]  # named `questions`, as among files
    (tmp_path / "train_questions.jsonl").rename(tmp_path / "train.jsonl")
    assert set(read(tmp_path).questions) == {"train", "dev"}
    assert read_passages([tmp_path / "passages"]) == found.passages
    assert read_passages([save_splits(tmp_path / "dict", train=[PASSAGE])]) == found.passages


def test_files_of_the_root(tmp_path, caplog):
    saved = save(tmp_path / "test", SQUAD)
    (saved / "cache-1.arrow").write_bytes(b"of the library's own")
    with caplog.at_level(logging.WARNING):
        read(saved)
    (message,) = caplog.messages
    assert message.endswith("cache-1.arrow: is not read: is no part of the saved dataset")


def test_names_of_classes(tmp_path):
    """PubHealth's labels are numbers of classes, of which -1 is an unknown one."""
    labels = {"_type": "ClassLabel", "names": ["false", "mixture", "true", "unproven"]}
    rows = [{"claim_id": str(i), "claim": "c", "label": label} for i, label in enumerate([2, 0, 1])]
    save(tmp_path / "a" / "passages", [PASSAGE])
    save(tmp_path / "a" / "dev", rows, features={"label": labels})
    questions = read(tmp_path / "a").questions["dev"]
    assert [question.id for question in questions] == ["0", "1"]  # a mixture is left out
    rows = [{"a": 1, "b": -1}]
    saved = save(tmp_path / "b", rows, features={"a": labels, "b": labels})
    assert [row for _, row in read_records(saved, BadLines())] == [{"a": "mixture", "b": None}]


def test_columns_of_values_of_several_types(tmp_path):
    """`datasets` keeps them as JSON, in a column or within one."""
    mixed = {"_type": "Json"}
    features = {"answer": mixed, "answers": {"feature": mixed, "_type": "List"}, "n": {"a": mixed}}
    rows = [
        {"answer": "true", "answers": ['"Z\\u00fcrich"', "12"], "n": {"a": "[1]"}},
        {"answer": '"Riga"', "answers": None, "n": {"a": None}},
    ]
    saved = save(tmp_path / "a", rows, features=features)
    assert [row for _, row in read_records(saved, BadLines())] == [
        {"answer": True, "answers": ["Zürich", 12], "n": {"a": [1]}},
        {"answer": "Riga", "answers": None, "n": {"a": None}},
    ]
    broken = save(tmp_path / "b", [{"answer": "{"}], features=features)
    with pytest.raises(RagJaxError, match=r"arrow is damaged: .*save_to_disk"):
        [*read_records(broken, BadLines())]


def test_what_determines_a_run(tmp_path):
    saved = save_splits(tmp_path / "saved", train=SQUAD, test=SQUAD)
    before = describe_source(DataConfig(str(saved)), WorldConfig())["files"]
    names = {"state.json", "dataset_info.json", "data-00000-of-00001.arrow"}
    wanted = {f"{split}/{name}" for split in ("train", "test") for name in names}
    assert set(before) == {"dataset_dict.json", *wanted}
    arrow = saved / "train" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes() + b"x")
    after = describe_source(DataConfig(str(saved)), WorldConfig())["files"]
    assert {name for name in after if after[name] != before[name]} == {f"train/{arrow.name}"}


def damage(folder, name, data):
    path = folder / name
    path.write_bytes(data(path.read_bytes())) if data else path.unlink()


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("train/state.json", None, "data-00000-of-00001.arrow: looks like data, but state.json is"),
        ("train/dataset_info.json", None, "looks like data, but dataset_info.json is missing"),
        ("train/data-00000-of-00001.arrow", None, "data-00000-of-00001.arrow is missing"),
        ("train/data-00000-of-00001.arrow", lambda d: d[:-8], "is damaged or cut short: the end"),
        ("train/data-00000-of-00001.arrow", lambda d: d[:300], "is damaged or cut short: the end"),
        ("train/data-00000-of-00001.arrow", lambda d: b"", "is damaged or cut short"),
        ("train/data-00000-of-00001.arrow", lambda d: b"x" + d, "is damaged or cut short"),
        ("train/state.json", lambda d: d[:9], "state.json is not valid JSON"),
        ("train/state.json", lambda d: b"[]", "state.json: must be an object"),
        ("train/state.json", lambda d: b'{"_data_files": 3}', "None is no file's name"),
        ("train/state.json", lambda d: d.replace(b"data-", b"../"), "is no file's name"),
        ("dataset_dict.json", lambda d: b'{"splits": "train"}', "must have a list 'splits'"),
        ("dataset_dict.json", lambda d: b'{"splits": ["dev"]}', "the split 'dev' has no folder"),
        ("dataset_dict.json", lambda d: b'{"splits": ["..", "train"]}', "must have a list"),
    ],
)
def test_damaged_folders(tmp_path, name, data, problem):
    saved = save_splits(tmp_path / "saved", train=SQUAD)
    damage(saved, name, data)
    with pytest.raises(RagJaxError, match=problem) as caught:
        read(saved)
    assert "\n" not in str(caught.value) and str(saved) in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "problem"),
    [
        ({"extra": SQUAD}, "extra: the split 'extra' of questions is unknown: rename it to train"),
        ({"dev": SQUAD, "validation": SQUAD}, "means the split 'dev', as dev does"),
        ({"train": [{"id": 1, "sentence": "x"}]}, "train: has an unknown format"),
        ({"train": [SQUAD[0], SQUAD[1] | {"question": None}]}, "train:2: has no 'question'"),
        ({"corpus": [PASSAGE]}, "holds no questions"),
    ],
)
def test_refused_rows(tmp_path, splits, problem):
    saved = save_splits(tmp_path / "saved", **splits)
    with pytest.raises(RagJaxError, match=problem) as caught:
        read(saved)
    assert "\n" not in str(caught.value)


def test_beside_beir(tmp_path):
    save(tmp_path / "train", SQUAD)
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "Where?"}')
    with pytest.raises(RagJaxError, match="train: lies beside BEIR's queries.jsonl"):
        read(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["arrow", "state", "info", "dict"]))
def test_wild_files(tmp_path_factory, data, name):
    """Whatever the files of a folder hold, it is read or refused in one line."""
    labels = {"_type": "ClassLabel", "names": ["a", "b"]}
    folder = save_splits(tmp_path_factory.mktemp("wild") / "saved", train=SQUAD)
    train = folder / "train"
    (train / "dataset_info.json").write_text(json.dumps({"features": {"label": labels}}))
    if name == "arrow":
        path = train / "data-00000-of-00001.arrow"
        path.write_bytes(data.draw(damage_bytes(path.read_bytes())))
    else:
        names = {"state": "train/state.json", "info": "train/dataset_info.json"}
        path = folder / names.get(name, "dataset_dict.json")
        path.write_bytes(data.draw(damage_json(path.read_text())))
    refuses_in_a_line(lambda: read(folder))


class Hub:
    """In the place of the library, with one dataset on the hub."""

    __version__ = "5.0.0"

    def __init__(self, cache):
        self.config, self.asked = SimpleNamespace(HF_DATASETS_CACHE=str(cache)), []

    def load_dataset(self, *names):
        self.asked.append(names)
        if names[0] != "owner/squad":
            raise ConnectionError("Couldn't reach the Hub\n(offline)")
        return SimpleNamespace(save_to_disk=self._save)

    def _save(self, folder):
        save_splits(folder, train=SQUAD, validation=SQUAD)


@pytest.fixture
def library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Hub(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


def test_names_on_the_hub(tmp_path, library):
    """A dataset is fetched once; its configuration is part of the name."""
    found = read("owner/squad")
    assert set(found.questions) == {"train", "dev"}
    describe_source(DataConfig("owner/squad"), WorldConfig())
    read("owner/squad/plain_text")
    assert library.asked == [("owner/squad",), ("owner/squad", "plain_text")]
    save(tmp_path / "more" / "test", SQUAD)
    mixed = read("owner/squad:more")
    assert {q.dataset for q in mixed.questions["dev"]} == {"owner--squad"}
    names = {path.name for path in (tmp_path / "cache" / "rag_jax").iterdir()}
    assert names == {"owner--squad", "owner--squad--plain_text"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("owner/other", "is no folder, and no dataset that can be fetched .*the Hub [(]offline[)]"),
        ("here/squad", "here/squad: no such folder"),  # misspelt: `here` is a folder
        ("squad", "squad: no such folder"),
        ("./owner/squad", "no such folder"),
        ("/owner/squad", "no such folder"),
    ],
)
def test_names_of_nothing(tmp_path, library, name, problem):
    (tmp_path / "here").mkdir()
    with pytest.raises(RagJaxError, match=f"config.data.path=.*{problem}") as caught:
        read(name)
    assert "\n" not in str(caught.value) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("version", [None, "3.6.0"])
def test_other_libraries(library, monkeypatch, version):
    """Without the library a name is no folder; an old one might run a dataset's code."""
    problem = "no such folder; for a dataset of the Hugging Face hub, pip install"
    if version is None:
        monkeypatch.setitem(sys.modules, "datasets", None)
    else:
        library.__version__, problem = version, "datasets 3.6.0 may run a dataset's code"
    with pytest.raises(RagJaxError, match=problem):
        read("owner/squad")
    assert library.asked == []
