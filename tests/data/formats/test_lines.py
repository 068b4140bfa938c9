"""Lines, tables and arrays: what is read of them whole, odd, packed, damaged or too long."""

import gzip
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import files, read_collection
from rag_jax.data.formats.lines import BadLineError, BadLines, read_lines
from rag_jax.data.formats.records import read_items, read_records
from rag_jax.data.formats.tables import read_rows
from rag_jax.runtime.errors import RagJaxError

# Every character that a file can hold, and of each odd kind some more often than by chance.
ODD = '\0\r\n\t"\\,[]{}\u2028\x85\ufeffé\u0301가각\u05d0\u202e\U0001f600\u3000'
TEXTS = st.text(st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])))
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)),
    max_leaves=3,
).filter(lambda value: "Infinity" not in json.dumps(value))
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


def texts(path, data, *, read=read_lines, limit=0):
    path.write_bytes(data)
    return [(place.line, found) for place, found in read(path, BadLines(limit))]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_marks_ends_and_scripts(tmp_path, pack):
    data = "\ufeffone\r\n\r\n \t\ntwo\0\u2028two\n\u05d0\u202e\n한국어 e\u0301é 😀".encode()
    found = texts(tmp_path / "a.txt", pack(data))
    assert found == [
        (1, "one"),
        (4, "two\0\u2028two"),
        (5, "\u05d0\u202e"),
        (6, "한국어 e\u0301é 😀"),
    ]
    assert texts(tmp_path / "a.txt", pack(b"")) == []


def test_bad_lines_are_named_and_counted(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    data = b'{"a": 1}\n\xff\n{\n[]\n{"a": NaN}\n' + b"[" * 100_000 + b'\n{"a": 2}\n'
    with caplog.at_level(logging.WARNING):
        found = texts(path, data, read=read_records, limit=5)
    assert found == [(1, {"a": 1}), (7, {"a": 2})]
    assert [message.split(": ")[0] for message in caplog.messages] == [
        f"{path}:{line}" for line in (2, 3, 4, 5, 6)
    ]
    assert caplog.messages[0].endswith("skipped, bad line 1 of at most 5")
    with pytest.raises(RagJaxError, match="a.jsonl:6: is not JSON .*raise config.data.bad_lines=4"):
        texts(path, data, read=read_records, limit=4)
    with pytest.raises(RagJaxError, match="a.jsonl:2: is not UTF-8"):
        texts(path, data, read=read_records)
    good, question = b'{"id": 1, "text": "a"}\n', b'{"id": 1, "question": "?", "answers": []}'
    path.write_bytes(b'{"id": 2, "text": "caf\xe9"}\n' + good)
    (tmp_path / "test.jsonl").write_bytes(question)
    found = read_collection(DataConfig(str(tmp_path), bad_lines=1), WorldConfig())
    assert [passage.id for passage in found.passages] == ["1"]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    path, packed = tmp_path / "a.jsonl", gzip.compress(b'{"a": 1}\n' * 100)
    for data in (packed[:-20], packed[:20] + b"xxxx" + packed[24:], packed[:4]):
        with pytest.raises(RagJaxError, match="a.jsonl: is damaged or cut short"):
            texts(path, data)
    with pytest.raises(RagJaxError, match="a.jsonl: is UTF-16: save it as UTF-8"):
        texts(path, "one".encode("utf-16"))
    for path, reason in ((tmp_path, "is a folder in the place"), (tmp_path / "no", "cannot be")):
        with pytest.raises(RagJaxError, match=f"{path}:? {reason}"):
            list(read_lines(path, BadLines()))
    monkeypatch.setattr(files, "LONGEST", 8)
    with pytest.raises(RagJaxError, match="b.jsonl:2: is longer than"):
        texts(tmp_path / "b.jsonl", b"short\n" + b"x" * 9)


def test_tables(tmp_path):
    data = b'id\ttext\r\n1\t"a ""b""\r\n\tc"\r\n\n2\td\n3\n4\te\n'
    path = tmp_path / "a.tsv"
    found = texts(path, data, read=read_records, limit=1)
    assert found == [
        (2, {"id": "1", "text": 'a "b"\r\n\tc'}),
        (5, {"id": "2", "text": "d"}),
        (7, {"id": "4", "text": "e"}),
    ]
    with pytest.raises(RagJaxError, match="a.tsv:6: has 1 fields, but the heading has 2"):
        texts(path, data, read=read_records)
    assert texts(tmp_path / "b.csv.gz", gzip.compress(b'a,b\n"1,2",3'), read=read_records) == [
        (2, {"a": "1,2", "b": "3"})
    ]
    assert texts(path, b"", read=read_records) == texts(path, b"", read=read_rows) == []


def test_a_long_field(tmp_path):
    long = "x" * 1_000_000
    found = texts(tmp_path / "a.tsv", f"id\ttext\n1\t{long}".encode(), read=read_records)
    assert found == [(2, {"id": "1", "text": long})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1}', "a.json:1: the array has no end"),
        (b"[", "a.json:1: the array has no end"),
        (b'[{"a": 1},\n]', "a.json:2: must be an object"),
        (b'[{"a": 1}\n{"a": 2}]', "a.json:2: is not JSON .a comma must follow item 1"),
        (b'[{"a": 1},\n\n{"a" 2}]', "a.json:3 .item 2.: is not JSON"),
        (b'[{"a": NaN}]', "a.json:1: is not JSON .NaN is not a JSON number"),
        (b'[{"a": "' + b"x" * 100_000, "a.json:1: is not JSON .Unterminated string"),
        (b'[{"a": ' + b"[" * 100_000, "a.json:1: is not JSON"),
        (b'[{"a": "\xff"}]', "a.json: is not UTF-8"),
    ],
)
def test_bad_arrays(tmp_path, data, message):
    with pytest.raises(RagJaxError, match=message) as caught:
        texts(tmp_path / "a.json", data, read=read_records, limit=9)
    assert "\n" not in str(caught.value)


@settings(max_examples=40)
@given(records=RECORDS, chunk=st.integers(1, 40), indent=st.sampled_from([None, 1]))
def test_any_records_as_array_lines_and_under_a_key(folder, records, chunk, indent):
    """However an array is cut into chunks, it is read as it was written."""
    path = folder / "a.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        path.write_text("\ufeff" + json.dumps(records, indent=indent, ensure_ascii=False), "utf-8")
        found = list(read_records(path, BadLines()))
        assert [record for _, record in found] == records
        assert [place.item for place, _ in found] == list(range(1, len(records) + 1))
        document = json.dumps({"data": records}, ensure_ascii=False, indent=indent)
        path.write_text(document, "utf-8", newline="")
        patch.setattr(files, "CHUNK", max(chunk, 16))  # the key has to be in the first
        found = list(read_items(path, "data"))
        assert [record for _, record in found] == records
        for place, _ in found:
            assert document.split("\n")[place.line - 1].count("{")
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), "utf-8")
        assert [record for _, record in read_records(path, BadLines())] == records


@given(data=st.binary(max_size=200))
def test_any_bytes(folder, data):
    """Whatever a file holds, it is read or refused in one line, and with leave it is read."""
    for name in ("a.jsonl", "a.tsv"):
        path = folder / name
        path.write_bytes(data)
        for limit in (0, 1000):
            try:
                list(read_records(path, BadLines(limit, quiet=True)))
            except RagJaxError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                assert not (limit and isinstance(error, BadLineError))
