"""Augmentations of documents, by rules and from a model's text."""

import pytest

from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import match
from rag_jax.systems.prag.augment import is_rewrite, parse_pairs
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules

ANDORRA = Passage(
    "country/AD/economy",
    "Andorra",
    "People in Andorra pay with the euro (EUR). Its main language is Catalan. Andorra borders "
    "Spain and France, and about 77,000 people live there.",
)


def test_parsed_pairs_have_their_answers_in_the_passage():
    text = (
        "Question: What do people pay with?\nAnswer: the euro.\n\n"
        "2) question 2: Which language is spoken?\nAnswer 2: Catalan\n"
        "Question: which language is spoken\nAnswer: Catalan\n"  # again
        "Question: How many live there?\nAnswer: 80,000\n"  # not there
        "Question: Is Andorra in Europe?\nAnswer: Andorra\n"  # given away
        "Question: Which one borders?\nand more\nAnswer: Spain\n"  # not in that form
        "Question: Alone?\n"
    )
    assert parse_pairs(text, ANDORRA) == [
        ("What do people pay with?", "the euro"),
        ("Which language is spoken?", "Catalan"),
    ]
    for nothing in ("", "Question:\nAnswer:", '[{"question": "a", "answer": "Spain"}]'):
        assert parse_pairs(nothing, ANDORRA) == []


def test_rewrites_keep_names_and_numbers():
    assert is_rewrite(rewrite_by_rules(ANDORRA), ANDORRA)
    assert not is_rewrite(ANDORRA.text.upper(), ANDORRA)  # the same
    assert not is_rewrite("It is a country.", ANDORRA)
    assert not is_rewrite("  ", Passage("x", "", "all lower case"))


def test_grammar_comes_before_gaps():
    pairs = ask_by_rules(ANDORRA, count=9)
    assert pairs[0] == ("What is the main language of Andorra?", "Catalan")
    assert [answer for _, answer in pairs] == ["Catalan", "EUR", "Spain", "France", "77,000"]
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
    for question, answer in ask_by_rules(passage, count=3):
        assert answer in text and not match(question, [answer])
    assert rewrite_by_rules(passage).strip()
