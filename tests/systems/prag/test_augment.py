"""Augmentations of documents, by rules and from a model's text."""
# ruff: noqa: RUF001 (full-width marks are what is tested)

import pytest

from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import match
from rag_jax.systems.prag import writer
from rag_jax.systems.prag.data import Pair
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.prag.writer import is_rewrite, parse_pairs

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
    assert parse_pairs(text, ANDORRA, full=False) == [
        Pair("What do people pay with?", "the euro"),
        Pair("Which language is spoken?", "Catalan"),
    ]
    assert parse_pairs(text, ANDORRA, full=True) == []
    for nothing in ("", "Question:\nAnswer:", '[{"question": "a", "answer": "Spain"}]'):
        assert parse_pairs(nothing, ANDORRA, full=False) == []


def test_full_answers_contain_their_answers():
    text = (
        "1. Question: What do people pay with?\nAnswer: the euro\n"
        "Full answer: People in Andorra pay with the euro, so it is the euro.\n\n"
        "Question: Which language is spoken?\nAnswer: Catalan\nFull answer: It is French.\n"
        "Question: Which land borders it?\nAnswer: Spain\n"
    )
    first = Pair("What do people pay with?", "the euro")
    sentence = "People in Andorra pay with the euro, so it is the euro."
    assert parse_pairs(text, ANDORRA, full=True) == [Pair(*first[:2], sentence)]
    assert parse_pairs(text, ANDORRA, full=False) == [
        first,
        Pair("Which language is spoken?", "Catalan"),
        Pair("Which land borders it?", "Spain"),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_the_sample_is_a_usable_text(full):
    """The example that the model is shown has the form that is read."""
    title, _, text = writer._SAMPLE.partition(": ")
    sample = "\n".join(writer._show_pair(pair, full) for pair in writer._SAMPLE_PAIRS)
    expected = [pair if full else Pair(*pair[:2]) for pair in writer._SAMPLE_PAIRS]
    assert parse_pairs(sample, Passage("1", title, text), full=full) == expected


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
