"""Records of a file that are read one at a time."""

import tracemalloc

import pytest

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, stream_jsonl, write_jsonl


@pytest.mark.parametrize("count", [500, 2_000])
def test_one_record_is_in_memory_at_a_time(tmp_path, count):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ({"id": i, "text": "x" * 1_000} for i in range(count)))
    tracemalloc.start()
    try:
        assert sum(record["id"] for record in stream_jsonl(path)) == count * (count - 1) // 2
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert read_jsonl(path) == list(stream_jsonl(path))


def test_a_damaged_line_is_named_when_it_is_reached(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1}\nnothing\n')
    records = stream_jsonl(path)
    assert next(records) == {"id": 1}
    with pytest.raises(RagJaxError, match="a.jsonl:2 is not valid JSON"):
        next(records)
