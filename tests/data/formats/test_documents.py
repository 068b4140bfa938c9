"""Several JSON documents in a file, objects on several lines, and what is no JSON after them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import files, msmarco, read_collection, read_passages
from rag_jax.data.formats.json_stream import NotJsonError, find_container, open_json
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.records import read_items, read_records
from rag_jax.runtime.errors import RagJaxError

PASSAGES = [{"id": str(i), "text": f"text {i}"} for i in range(3)]


def squad(number):
    asked = {"id": f"s{number}", "question": "Where?", "answers": [{"text": "text"}]}
    paragraph = {"context": f"text {number}", "qas": [asked]}
    return {"version": "1.1", "data": [{"title": "T", "paragraphs": [paragraph]}], "more": [[1]]}


def ids(path, text):
    path.write_text(text, "utf-8")
    return [passage.id for passage in read_passages([path])]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(PASSAGES[:1]) + json.dumps(PASSAGES[1:]),
        "\n".join(json.dumps([passage]) for passage in PASSAGES) + "\n\n",
        "[]" + json.dumps(PASSAGES, indent=2),
        "\n".join(json.dumps(passage, indent=2) for passage in PASSAGES),
        "".join(json.dumps(passage, indent=1) for passage in PASSAGES),
        "\n\n"
        + json.dumps(PASSAGES[0], indent=4)
        + "\r\n"
        + json.dumps(PASSAGES[1])
        + json.dumps(PASSAGES[2]),
        '{"id": "0",\n "text": "a"}\n{"id": "1",\n "text": "b"}\n{"id":\n"2", "text": "c"}',
    ],
)
def test_all_documents_are_read(tmp_path, text):
    assert ids(tmp_path / "a.json", text) == ["0", "1", "2"]


def test_documents_of_squad(tmp_path):
    for separator in ("", "\n", "\n\n"):
        text = separator.join(json.dumps(squad(i)) for i in range(3))
        (tmp_path / "dev.json").write_text(text)
        found = read_collection(DataConfig(str(tmp_path)), WorldConfig())
        assert [q.id for q in found.questions["dev"]] == ["s0", "s1", "s2"]
        assert len(found.passages) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(PASSAGES) + "\n<html>502", ":2: only an array may follow, not '<'"),
        (json.dumps(PASSAGES) + "]", ":1: only an array may follow, not ']'"),
        (json.dumps(PASSAGES) + '\n\n{"id": "7", "text": "a"}', ":3: only an array may follow"),
        (json.dumps(PASSAGES) + "\n[", ":2: the array has no end"),
        ('{\n "id": "0", "text": "a"\n}\nrubbish', ":4 .item 2.: must be an object"),
        ('{\n "id": "0",\n "text": "a"', ":1: is not JSON"),
        ('{\n "id": "0",\n "text": "a"\n}\n[]', ":5 .item 2.: must be an object"),
    ],
)
def test_what_follows_a_document_is_named(tmp_path, text, message):
    with pytest.raises(RagJaxError, match=f"a.json{message}") as caught:
        ids(tmp_path / "a.json", text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(squad(1)) + "rubbish", ":1: only an object with the array 'data' may follow"),
        (json.dumps(squad(1)) + '\n{"version": "2"}', ":2: a document has no array 'data'"),
        (json.dumps(squad(1))[:-1], ":1: is not JSON .',' is missing"),
        ('{"data": [], "data": []}', ":1: 'data' must be one array"),
        ('{"data": {}}', ":1: 'data' must be one array"),
        ('{"data": [],}', ":1: is not JSON .a member must follow"),
        ('{"data" []}', ":1: is not JSON .':' is missing"),
        ("{1: []}", ":1: is not JSON"),
        ("[]", ":1: only an object"),
    ],
)
def test_what_follows_under_a_key_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RagJaxError, match=f"a.json{message}"):
        list(read_items(tmp_path / "a.json", "data"))


LEAVES = st.one_of(st.integers(), st.booleans(), st.none(), st.text(max_size=3), st.floats(0, 1e9))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(
    documents=st.lists(
        st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3)), max_size=3
    ),
    before=st.dictionaries(st.sampled_from("ab"), VALUES),
    after=st.dictionaries(st.sampled_from("cd"), VALUES),
    chunk=st.integers(1, 20),
    indent=st.sampled_from([None, 1]),
    separator=st.sampled_from(["", "\n", " \r\n"]),
)
def test_any_documents(tmp_path_factory, documents, before, after, chunk, indent, separator):
    """However documents are laid out, joined and cut into chunks, every item of each is read."""
    path = tmp_path_factory.getbasetemp() / "documents.json"
    wanted = [item for document in documents for item in document]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        texts = [json.dumps(d, indent=indent, ensure_ascii=False) for d in documents]
        path.write_text(separator.join(texts), "utf-8")
        assert [item for _, item in read_items(path, "")] == wanted
        wrapped = [{**before, "data": document, **after} for document in documents]
        texts = [json.dumps(d, indent=indent, ensure_ascii=False) for d in wrapped]
        path.write_text(separator.join(texts), "utf-8")
        found = list(read_items(path, "data"))
        assert [item for _, item in found] == wanted
        assert [place.item for place, _ in found] == list(range(1, len(wanted) + 1))
        if indent and wrapped:
            assert [record for _, record in read_records(path, BadLines())] == wrapped


def test_the_first_container(tmp_path):
    path = tmp_path / "a.json"
    for value, wanted in (
        ({"a": 1, "b": [{"c": 2}, 3]}, ("b", [{"c": 2}])),
        ({"a": {"b": [1, 2], "c": 3}, "d": []}, ("a", {"b": [1, 2]})),
        ({"a": []}, ("a", [])),
        ({"a": 1}, None),
        ([1], None),
        ("a", None),
    ):
        path.write_text(json.dumps(value))
        assert find_container(path) == wanted
    path.write_text("no JSON")
    assert find_container(path) is None


def test_columns_are_read_in_step(tmp_path):
    """However large a column is, one row of each is in memory."""
    path, count = tmp_path / "train_v2.1.json", 3
    rows = range(count)
    columns = {
        "answers": {str(i): [f"a{i}"] for i in rows},
        "other": {str(i): i for i in rows},
        "query": {str(i): f"q{i}" for i in rows},
        "query_id": {str(i): i for i in rows},
    }
    path.write_text(json.dumps(columns))
    assert msmarco.holds(path)
    items = list(msmarco.read(path, BadLines()))
    assert [(i.question.id, i.question.question, i.question.answers) for i in items] == [
        (f"{i}", f"q{i}", (f"a{i}",)) for i in rows
    ]
    for rest in ("<html>", "{}", json.dumps(columns)):
        path.write_text(json.dumps(columns) + rest)
        with pytest.raises(NotJsonError, match="train_v2.1.json:1: nothing may follow the columns"):
            list(msmarco.read(path, BadLines()))
    for wrong in ({"2": "x", "1": "y", "0": "z"}, {"0": "x"}, {}):
        path.write_text(json.dumps(columns | {"query": wrong}))
        with pytest.raises(NotJsonError, match="the columns .* have different rows"):
            list(msmarco.read(path, BadLines()))


def test_a_value_longer_than_the_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST", 100)
    monkeypatch.setattr(files, "CHUNK", 10)
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 1_000}))
    with open_json(tmp_path / "a.json") as stream, pytest.raises(NotJsonError, match="a.json:1: "):
        stream.read_value()
