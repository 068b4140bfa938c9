"""Which written questions are kept, which passages are asked about, and how documents are split."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.data.passages import Passage
from rag_jax.systems.questions.check import Draft, is_copied, judge, names_something, sift
from rag_jax.systems.questions.pipeline import split_documents
from rag_jax.systems.questions.write import choose_passages, name_document

PASSAGES = {
    "a": Passage(
        "a", "Riga", "It lies at the mouth of the Daugava where it meets the Baltic Sea in Latvia."
    ),
    "b": Passage("b", "The town of Tartu", "Tartu lies on the Emajogi in Estonia."),
}


def test_questions_that_stand_for_themselves():
    good = Draft("a", "At which river's mouth is Riga?", "Daugava")
    drafts = [
        good,
        Draft("b", "at which rivers mouth is Riga", "the Daugava"),  # again, of another passage
        Draft("a", "Which city is named in this passage?", "Riga"),
        Draft("b", "What of Tartu?", "Tartu lies on the Emajogi in Estonia"),
        Draft("b", "According to the text, where is Tartu?", "Estonia"),
        Draft("a", "Where is the city of Dreams?", "Latvia"),
        Draft("b", "Where is the city of Dreams?", "Estonia"),
        Draft("b", "Where is it of old?", "Estonia"),
        Draft("a", "What lies at the mouth of the Daugava where it meets the Baltic Sea?", "Riga"),
    ]
    kept, left = sift(drafts, PASSAGES, copied=8, answer_words=6)
    assert kept == [good]
    assert [(draft.question[:5], reason) for draft, reason in left] == [
        ("at wh", "was asked before"),
        ("Which", "points at its passage"),
        ("What ", "has an answer of more than 6 words"),
        ("Accor", "points at its passage"),
        ("Where", "has several answers"),
        ("Where", "has several answers"),
        ("Where", "names nothing"),
        ("What ", "copies 8 words of its passage"),
    ]
    assert sift([], {}, copied=8, answer_words=6) == ([], [])


@pytest.mark.parametrize(
    ("question", "title", "names"),
    [
        ("What is its area?", "Chad: Geography", False),
        ("What is the area of chad?", "Chad: Geography", True),
        ("How long does the dough rest?", "Baking with sour dough", True),
        ("How long is it in the oven?", "Of bread in ovens", False),
        ("When did Oslo burn?", "", True),
        ("Who wrote 'Faust'?", "", True),
        ("\u6771\u4eac\u306f\u3069\u3053\u3067\u3059\u304b", "", True),
        ("", "", True),
    ],
)
def test_a_question_names_something(question, title, names):
    assert names_something(question, title) is names


def test_a_copy_has_so_many_words_in_a_row():
    text = "The old bridge of Riga was built in 1904 by Danish engineers."
    question = "Was the bridge of Riga built in 1904 by Danish people?"
    assert is_copied(question, text, 4)  # built in 1904 by Danish
    assert is_copied(question, text, 5)
    assert not is_copied(question, text, 6)
    assert not is_copied("", text, 1) and not is_copied(question, "", 1)
    # Characters are the words where no spaces stand.
    assert is_copied("東京は日本のどこですか", "東京は日本の首都です", 6)
    assert not is_copied("東京は日本のどこですか", "東京は日本の首都です", 7)


@pytest.mark.parametrize(
    ("read", "known", "reason"),
    [
        ("The Daugava.", "the Neva", ""),
        ("Lielupe", "the Neva", "is not answered so from its passage"),
        ("Lielupe", "Daugava", "is not answered so from its passage"),
        ("daugava", "It is the Daugava river.", "is answered without its passage"),
    ],
)
def test_the_model_needs_the_passage_for_the_answer(read, known, reason):
    record = {"answer": "Daugava", "with_passage": read, "without": known}
    assert judge(record) == reason


def test_a_document_is_a_file_or_a_title():
    assert name_document(Passage("a/b.md#3.2", "B: History", "x")) == "a/b.md"
    assert name_document(Passage("b.pdf#7", "B", "x")) == "b.pdf"
    assert name_document(Passage("17", "Riga", "x")) == "Riga"
    assert name_document(Passage("17", "", "x")) == "17"


LONG = " ".join(["word"] * 20)
MANY = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40)


@given(MANY, st.integers(0, 50), st.integers(0, 9))
def test_passages_are_drawn_evenly_from_the_documents(drawn, count, seed):
    passages = [
        Passage(str(i), f"document {name}", LONG if long else LONG[:-5])
        for i, (name, long) in enumerate(drawn)
    ]
    numbers = [*choose_passages(passages, count, np.random.default_rng(seed))]
    usable = [i for i, (_, long) in enumerate(drawn) if long]
    assert len(numbers) == min(count or len(usable), len(usable))
    assert numbers == sorted({*numbers}) and {*numbers} <= {*usable}
    chosen, there = (Counter(drawn[i][0] for i in part) for part in (numbers, usable))
    # No document has two more than another one that has some left.
    for name in there:
        assert chosen[name] == there[name] or max(chosen.values(), default=0) <= chosen[name] + 1
    assert numbers == [*choose_passages(passages, count, np.random.default_rng(seed))]


@given(
    st.lists(st.sampled_from("abcdefgh"), max_size=60),
    st.floats(0, 0.6),
    st.floats(0, 0.4),
    st.integers(0, 9),
)
def test_documents_are_split_by_shares_of_questions(documents, test, dev, seed):
    splits = split_documents(documents, test=test, dev=dev, seed=seed)
    assert splits.keys() == {*documents} and {*splits.values()} <= {"test", "dev", "train"}
    counts = Counter(splits[name] for name in documents)
    largest = max(Counter(documents).values(), default=0)
    assert counts["test"] <= test * len(documents) + largest
    assert counts["test"] >= test * len(documents) - 1e-9
    assert counts["test"] + counts["dev"] >= (test + dev) * len(documents) - 1e-9
    assert splits == split_documents(documents, test=test, dev=dev, seed=seed)
