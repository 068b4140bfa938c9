"""Where sentences end."""
# ruff: noqa: RUF001 (full-width marks are what is tested)

import pytest

from rag_jax.data.sentences import list_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [""]),
        ("One.  Two\nlines! Three?", ["One.", "Two lines!", "Three?"]),
        ("The U.S. dollar. 5 of them.", ["The U.S. dollar.", "5 of them."]),
        ("Раз два. Три.", ["Раз два.", "Три."]),
        ("no end", ["no end"]),
        (
            "奥斯陆是首都。人口很多！真的？！是的",
            ["奥斯陆是首都。", "人口很多！", "真的？！", "是的"],
        ),
        ("「はい。」と言った。 次。", ["「はい。」", "と言った。", "次。"]),
        ("오슬로는 수도이다. 다리가 많다.", ["오슬로는 수도이다.", "다리가 많다."]),
        ("هل هذا صحيح؟ نعم. لا", ["هل هذا صحيح؟", "نعم.", "لا"]),
        ("यह राजधानी है। यहाँ नदी है।", ["यह राजधानी है।", "यहाँ नदी है।"]),
        ("กีโตเป็นเมืองหลวง อยู่ริมแม่น้ำ", ["กีโตเป็นเมืองหลวง อยู่ริมแม่น้ำ"]),
    ],
)
def test_list_sentences(text, sentences):
    assert list_sentences(text) == sentences
