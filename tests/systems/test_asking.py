"""Questions and answers from a model's text about a passage."""

import pytest

from rag_jax.data.passages import Passage
from rag_jax.systems import asking
from rag_jax.systems.asking import Pair, parse_pairs

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


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("**Question 1:** {}", "**Answer:** {}"),
        ("**Question**: {}", "**Answer**: {}"),
        ("**1. Question: {}**", "**Answer: {}**"),
        ("### Question 1: {}", "- Answer: *{}*."),
        ("Question: *{}*", "Answer: `{}`"),
        ("Question: {}", 'Answer: "{}".'),
        ("Question: {}", "Answer: \u201c{}\u201d"),
    ],
)
def test_marks_of_markdown_are_no_part_of_a_pair(question, answer):
    asked = "Which language is spoken?"
    text = f"{question.format(asked)}\n{answer.format('Catalan')}\n"
    assert parse_pairs(text, ANDORRA, full=False) == [Pair(asked, "Catalan")]
    full = f"{text}**Full answer:** *Catalan is spoken in Andorra.*\n"
    sentence = "Catalan is spoken in Andorra."
    assert parse_pairs(full, ANDORRA, full=True) == [Pair(asked, "Catalan", sentence)]


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
    title, _, text = asking._SAMPLE.partition(": ")
    sample = "\n".join(asking._show_pair(pair, full) for pair in asking._SAMPLE_PAIRS)
    expected = [pair if full else Pair(*pair[:2]) for pair in asking._SAMPLE_PAIRS]
    assert parse_pairs(sample, Passage("1", title, text), full=full) == expected
