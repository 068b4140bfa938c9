"""Augmentations of documents, by rules and from a model's text."""
# ruff: noqa: RUF001 (full-width marks are what is tested)

import pytest

from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import match
from rag_jax.systems.asking import Pair, parse_pairs
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.prag.writer import is_rewrite

ANDORRA = Passage(
    "country/AD/economy",
    "Andorra",
    "People in Andorra pay with the euro (EUR). Its main language is Catalan. Andorra borders "
    "Spain and France, and about 77,000 people live there.",
)


def test_rewrites_keep_names_and_numbers():
    assert is_rewrite(rewrite_by_rules(ANDORRA), ANDORRA)
    assert not is_rewrite(ANDORRA.text.upper(), ANDORRA)  # the same
    assert not is_rewrite("It is a country.", ANDORRA)
    assert not is_rewrite("  ", Passage("x", "", "all lower case"))


def test_grammar_comes_before_gaps():
    pairs = ask_by_rules(ANDORRA, count=9)
    sentence = "Its main language is Catalan."
    assert pairs[0] == ("What is the main language of Andorra?", "Catalan", sentence)
    assert [pair.answer for pair in pairs] == ["Catalan", "EUR", "Spain", "France", "77,000"]
    assert pairs[1][0] == (
        "Which words are missing about Andorra? People in Andorra pay with the euro (___)."
    )
    assert ask_by_rules(ANDORRA, count=2) == pairs[:2]


@pytest.mark.parametrize(
    "passage",
    [
        ANDORRA,
        Passage("1", "", "no capitals and no numbers at all"),
        Passage("2", "東京", "東京は日本の首都です。"),
        Passage("3", "Oslo", "Oslo."),
        Passage("4", "X", "..."),
        Passage("5", "Riga", "Riga, Riga and Riga is Riga."),
    ],
)
def test_rules_take_any_text(passage):
    text = f"{passage.title} {passage.text}"
    for question, answer, full in ask_by_rules(passage, count=3):
        assert answer in text and not match(question, [answer])
        assert answer in full and full in " ".join(text.split())
    assert rewrite_by_rules(passage).strip()


def test_rules_ask_for_the_last_characters_where_there_are_no_words():
    passage = Passage("p", "奥斯陆", "奥斯陆是挪威的首都。人口很多。")
    assert rewrite_by_rules(passage) == "人口很多。 奥斯陆是挪威的首都。"
    assert ask_by_rules(passage, count=3) == [
        Pair(
            "Which words are missing about 奥斯陆? 奥斯陆是挪威的___。",
            "首都",
            "奥斯陆是挪威的首都。",
        ),
        Pair("Which words are missing about 奥斯陆? 人口___。", "很多", "人口很多。"),
    ]
    written = parse_pairs("Question: 首都是哪国的？\nAnswer: 挪威", passage, full=False)
    assert written == [Pair("首都是哪国的？", "挪威")]
