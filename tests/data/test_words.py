"""Words where there are no spaces, and other texts as they were."""
# ruff: noqa: RUF001 (full-width marks are what is tested)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.data.words import count_words, list_bigrams, space_characters, take_words

SPACED = st.text(
    st.characters(codec="utf-8", max_codepoint=0xE00) | st.sampled_from("가나 다\U0001f5fc")
)


@given(SPACED, st.integers(0, 5))
def test_texts_with_spaces_have_the_words_between_them(text, count):
    assert count_words(text) == len(text.split())
    assert take_words(text, count) == " ".join(text.split()[:count])
    assert space_characters(text) == text
    assert list_bigrams(text) == ([text] if text else [])


@pytest.mark.parametrize(
    ("text", "count", "beginning"),
    [
        ("奥斯陆是挪威的首都，位于河边。", 7, "奥斯陆是挪威"),
        ("「ノルウェー」の首都", 5, "「ノルウェー」"),
        ("2024年GDP增长5%。 新句", 6, "2024年GDP"),
        ("กีโตอยู่ ที่นี่", 4, "กีโตอยู่"),
    ],
)
def test_two_characters_are_a_word(text, count, beginning):
    assert count_words(text) == count
    assert take_words(text, 3) == beginning
    assert take_words(text, 99) == text
    assert "".join(space_characters(text).split()) == text.replace(" ", "")


def test_bigrams():
    assert list_bigrams("挪威的gdp和5") == ["挪威", "威的", "gdp", "和", "5"]
    assert list_bigrams("กโต") == ["กโ", "โต"]
