"""Passages on disk are those that were written, and never all in memory."""

import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data import passages
from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import (
    Passage,
    PassageFile,
    find_prefixed,
    fingerprint_corpus,
    write_passages,
)
from rag_jax.runtime.errors import RagJaxError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=30)
@given(passages=st.lists(st.builds(Passage, TEXTS, TEXTS, TEXTS), max_size=5))
def test_any_passages(tmp_path_factory, passages):
    path = tmp_path_factory.mktemp("passages") / "passages.jsonl"
    write_passages(path, passages)
    found = PassageFile(path)
    assert len(found) == len(passages) and list(found) == passages
    rows = range(-len(passages), len(passages))
    assert [found[row] for row in rows] == [passages[row] for row in rows]
    for part in (slice(None), slice(1, 3), slice(3, 1), slice(None, None, -2)):
        assert found[part] == passages[part]
    with pytest.raises(IndexError, match="no row"):
        found[len(passages)]


def test_memory_is_for_a_shard(tmp_path):
    """Ten megabytes are read, written and read again within one."""
    with open(tmp_path / "a.jsonl", "w") as file:
        for i in range(2_000):
            file.write(json.dumps({"id": i, "text": f"{i} " + "x" * 5_000}) + "\n")
    path = tmp_path / "passages.jsonl"
    tracemalloc.start()
    try:
        write_passages(path, stream_passages([tmp_path / "a.jsonl"], BadLines()))
        found = PassageFile(path)
        assert sum(len(passage.text) for passage in found) > 10_000_000
        assert [passage.id for passage in found[1_000:1_050]] == list(map(str, range(1_000, 1_050)))
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def test_nothing_is_read_ahead(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "One."}\n{"id": 2}\n')
    passages = stream_passages([tmp_path / "a.jsonl"], BadLines())
    assert next(passages) == Passage("1", "", "One.")
    with pytest.raises(RagJaxError, match="a.jsonl:2: has no 'text'"):
        next(passages)


def test_a_file_that_was_replaced_is_not_read_by_its_old_places(tmp_path):
    """Of equal length, so that every old place is a line of the new file too."""
    path = tmp_path / "passages.jsonl"
    found = write_passages(path, [Passage(id, "", f"text {id}") for id in "abc"])
    assert found[1].id == "b"
    os.utime(path, ns=(0, 0))
    found = PassageFile(path)
    again = write_passages(path, [Passage(id, "", f"text {id}") for id in "cba"])
    for read in (lambda: found[0], lambda: found[:2], lambda: list(found)):
        with pytest.raises(RagJaxError, match="passages.jsonl: was replaced since it was opened"):
            read()
    assert [passage.id for passage in again] == ["c", "b", "a"]


def test_a_pass_through_a_file_is_made_once(tmp_path, monkeypatch):
    listed = [Passage(f"{kind}/{i}", "title", f"text {i}") for i in range(5) for kind in "ab"]
    found = write_passages(tmp_path / "passages.jsonl", listed)
    read, parse = [], passages._parse
    monkeypatch.setattr(passages, "_parse", lambda line: read.append(line) or parse(line))
    for _ in range(3):
        assert fingerprint_corpus(found) == fingerprint_corpus(listed)
        assert find_prefixed(found, "b/").tolist() == [1, 3, 5, 7, 9]
        assert find_prefixed(listed, "b/").tolist() == [1, 3, 5, 7, 9]
    assert len(read) == 2 * len(listed)
    assert find_prefixed(found, "a").tolist() == [0, 2, 4, 6, 8] and len(read) == 3 * len(listed)
