"""Packed texts: every text is there, sees itself alone, and shares what it begins with."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.decoding.packing import pack_texts

TEXTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), max_size=7)


@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(1, 20))
def test_every_text_sees_itself_alone(groups, limit):
    packed = pack_texts(groups, limit=limit)
    times, left = divmod(len(packed.tokens), len(groups))
    assert left == 0
    used = np.zeros(packed.tokens.shape, bool)
    for group, (texts, found) in enumerate(zip(groups, packed.texts, strict=True)):
        assert len(texts) == len(found)
        for text, (row, places) in zip(texts, found, strict=True):
            assert row // times == group
            assert packed.tokens[row, places].tolist() == text
            assert packed.depth[row, places].tolist() == list(range(len(text)))
            for i, place in enumerate(places):
                assert np.flatnonzero(packed.attention_mask[row, place]).tolist() == places[: i + 1]
            used[row, places] = True
    longest = max((len(text) for texts in groups for text in texts), default=0)
    assert used.sum(axis=1).max(initial=0) <= max(limit, longest)
    # Padding looks at itself: attention over nothing has no meaning.
    assert packed.attention_mask[~used].sum() == (~used).sum()


def test_what_texts_begin_with_is_there_once():
    packed = pack_texts([[[5, 6, 7], [5, 6, 8], [9], [5, 6, 7]]], limit=100)
    (first, second, other, again) = packed.texts[0]
    assert packed.tokens[0, :5].tolist() == [5, 6, 7, 8, 9]
    assert (first, second, other) == ((0, [0, 1, 2]), (0, [0, 1, 3]), (0, [4])) and again == first


def test_a_row_that_is_full_is_followed_by_another():
    packed = pack_texts([[[1, 2, 3], [1, 2, 4], [1, 2, 5]], [[7]]], limit=4)
    assert [row for row, _ in packed.texts[0]] == [0, 0, 1]
    assert packed.texts[1] == [(2, [0])]
    assert packed.tokens[1, :3].tolist() == [1, 2, 5]
