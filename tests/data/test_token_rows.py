"""Token ids in one array: the rows, what they begin with, and their bytes."""

import hypothesis
import pytest
from hypothesis import strategies as st

from rag_jax.data.token_rows import TokenRows
from rag_jax.decoding.prompts import split_prefix

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.lists(st.integers(0, 2), max_size=4), ROWS)
def test_rows_and_what_they_begin_with(start, ends):
    lists = [start + end for end in ends]
    rows = TokenRows(iter(lists))
    assert [row.tolist() for row in rows] == lists
    assert rows.lengths == list(map(len, lists))
    assert sum(row.nbytes for row in rows) == 4 * sum(rows.lengths)
    prefix, rests = split_prefix(lists)
    shared = rows.count_shared()
    assert rows[0][:shared].tolist() == prefix
    assert [row[shared:].tolist() for row in rows] == rests


def test_no_rows():
    rows = TokenRows([])
    assert len(rows) == rows.count_shared() == 0 and rows.lengths == []
    with pytest.raises(IndexError):
        rows[0]
