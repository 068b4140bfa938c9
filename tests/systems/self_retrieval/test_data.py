"""Self-Retrieval's texts: one set of tokens in training, trie and inference, and their spans."""
# ruff: noqa: RUF001 (full-width marks are what is tested)

from collections import Counter
from dataclasses import replace

import hypothesis
import pytest
from hypothesis import strategies as st

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import load
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.systems.self_retrieval.data import (
    Format,
    choose_same,
    cut_target,
    list_question_rows,
    make_index_rows,
    make_question_rows,
    split_sentences,
)

TEXT = "Gitega is a city in Burundi. About 100 people live there now, says the last count."
PASSAGE = Passage("city/1", "Gitega", TEXT)
QUESTION = Question("q", "Where is Gitega?", ("Burundi", "Republic of Burundi"), {"city/1": 1})


@pytest.fixture(scope="module")
def tokenizer(llama_folder):
    return load(llama_folder).tokenizer


@pytest.fixture
def format(tokenizer):
    return Format(tokenizer, titled=True, assessment="phrase", max_text=200)


def spell(format, tokens):
    return format.tokenizer.decode([t for t in tokens if t != format.tokenizer.eos_id])


def test_a_whole_text(format):
    accepted = format.encode_accept() + format.encode_answer("Burundi")
    tokens = format.encode_question("Where  is\nit?") + format.encode_reading(PASSAGE) + accepted
    assert spell(format, tokens) == (
        "Question: Where is it?\n\n Related document title: Gitega\n Related document content: "
        f"{TEXT}\n\n Assessment: can answer the query\n Final answer: Burundi"
    )
    assert tokens[-1] == format.tokenizer.eos_id


def test_the_answer_as_assessment(tokenizer):
    format = Format(tokenizer, titled=False, assessment="answer", max_text=200)
    tokens = (
        format.encode_question("Where?") + format.encode_reading(PASSAGE) + format.encode_accept()
    )
    assert spell(format, [*tokens, *format.encode_answer("Burundi")]) == (
        f"Question: Where?\n\n Related document content: {TEXT}\n\n Final answer: Burundi"
    )
    assert spell(format, format.encode_reject()) == " cannot extract answer"


def test_pieces_fit_the_trie(format):
    sequence = format.encode_sequence(PASSAGE)
    title, end = format.encode_title("Gitega"), format.cut_title(format.encode_title("Gitega"))
    assert sequence[: len(title)] == title and sequence[len(title) :] == format.encode_text(TEXT)
    assert title[: len(end)] == end
    # One token of the heading tells a title from a longer one.
    assert end[:-1] == format.tokenizer.encode(" Gitega")
    reading = format.encode_reading(PASSAGE)
    assert reading[: len(sequence)] == sequence


def test_rows_of_a_question(format):
    negative = Passage("x", "Oslo", "Oslo lies in Norway.")
    rows = list(
        make_question_rows(format, QUESTION, {"city/1": PASSAGE}, [negative], ExamplesConfig())
    )
    positive, wrong = rows
    start, stop = positive.spans["retrieval"]
    assert positive.tokens[start:stop] == format.encode_sequence(PASSAGE)
    start, stop = positive.spans["assessment"]
    assert spell(format, positive.tokens[start:stop]) == (
        " can answer the query\n Final answer: Burundi"
    )
    assert (stop, positive.tokens[-1]) == (len(positive.tokens), format.tokenizer.eos_id)
    assert wrong.spans.keys() == {"assessment"}
    start, stop = wrong.spans["assessment"]
    assert spell(format, wrong.tokens[start:stop]) == " cannot answer the query"
    assert spell(format, wrong.tokens[:start]).endswith("Oslo lies in Norway.\n\n Assessment:")


def test_rows_that_are_trained_several_times(format):
    """As in the released code: 5 negatives to 3 positives, all twice."""
    examples = ExamplesConfig(same=5, other=1, positives=3, repeats=2)
    other = Passage("other", "Oslo", "Oslo lies in Norway.")
    passages = [*DOCUMENT, other]
    rows = list_question_rows(format, [QUESTION], passages, [[len(DOCUMENT)]], examples, seed=0)
    counts = Counter(row.id for row in rows)
    drawn = draw(QUESTION, [DOCUMENT], count=5)
    negatives = {f"q-{id}": 2 for id in [*drawn, "other"]}
    assert counts == {"q+city/1": 6, **negatives}


@pytest.mark.parametrize("target", ["passage", "prefix"])
def test_index_rows(format, target):
    examples = ExamplesConfig(target=target, prefix_words=4, sentences=0)
    rows = list(make_index_rows(format, [PASSAGE], examples, seed=0))
    sentences = split_sentences(TEXT)
    assert len(rows) == len(sentences) == 2
    for row, sentence in zip(rows, sentences, strict=True):
        start, stop = row.spans["retrieval"]
        assert stop == len(row.tokens)
        asked = format.encode_question(sentence)
        assert row.tokens[:start] == asked
        text = TEXT if target == "passage" else "Gitega is a city"
        assert spell(format, row.tokens[start:]) == (f" Gitega\n Related document content: {text}")
        # What is trained is the beginning of what the trie has.
        assert format.encode_sequence(PASSAGE)[: stop - start] == row.tokens[start:]


def test_one_sentence_a_passage(format):
    examples = ExamplesConfig(sentences=1)
    (row,) = make_index_rows(format, [PASSAGE], examples, seed=0)
    assert list(make_index_rows(format, [PASSAGE], examples, seed=0)) == [row]


def test_long_texts_are_cut_where_they_are_read(tokenizer):
    format = Format(tokenizer, titled=True, assessment="phrase", max_text=5)
    read = format.encode_reading(PASSAGE)
    text = format.encode_text(TEXT)
    assert cut_target(format, TEXT, ExamplesConfig()) == 5
    assert read[len(format.encode_title("Gitega")) :][:5] == text[:5]
    assert spell(format, read).endswith("\n\n Assessment:")
    assert len(format.encode_sequence(PASSAGE)) > len(read)  # the trie has all of it


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two three four five six. Seven.", ["One two three four five six."]),
        ("Too short.", ["Too short."]),
        ("", [""]),
        (
            "The U.S. dollar is used in all of these places. 5 of them have others too, though.",
            [
                "The U.S. dollar is used in all of these places.",
                "5 of them have others too, though.",
            ],
        ),
        ("Это первое предложение из шести слов здесь. Вот и второе, тоже из семи слов.", 2),
    ],
)
def test_split_sentences(text, sentences):
    found = split_sentences(text)
    assert found == sentences if isinstance(sentences, list) else len(found) == sentences


LONG = "It says nothing of where that place is, however long one reads."
DOCUMENT = [
    PASSAGE,
    Passage("answers", "Gitega", f"{LONG} But this one says Burundi too."),
    Passage("short", "Gitega", "x" * 50),
    Passage("just long enough", "Gitega", "x" * 51),
    *(Passage(f"p{i}", "Gitega", f"{LONG} {i}") for i in range(20)),
]
NEGATIVES = {passage.id for passage in DOCUMENT[3:]}


def draw(question, documents, *, count=1, seed=0):
    return [p.id for p in choose_same(question, documents, count=count, seed=seed)]


def test_negatives_of_the_same_document():
    """Neither relevant nor short passages, nor passages with an answer; from each document."""
    assert set(draw(QUESTION, [DOCUMENT], count=100)) == NEGATIVES
    assert len(draw(QUESTION, [DOCUMENT], count=100)) == len(NEGATIVES)
    assert draw(QUESTION, [DOCUMENT[:3]], count=5) == []
    other = [Passage(f"o{i}", "Ngozi", LONG) for i in range(9)]
    drawn = draw(QUESTION, [DOCUMENT, other], count=3)
    assert [id in NEGATIVES for id in drawn] == [True] * 3 + [False] * 3
    assert len(set(drawn)) == 6


def test_negatives_of_the_same_document_are_drawn_evenly():
    counts = dict.fromkeys(NEGATIVES, 0)
    for i in range(1000):
        (drawn,) = draw(replace(QUESTION, id=f"q{i}"), [DOCUMENT])
        counts[drawn] += 1
    # About 48 each: five standard deviations either way.
    assert all(14 <= count <= 82 for count in counts.values())
    assert draw(QUESTION, [DOCUMENT], count=5) != draw(QUESTION, [DOCUMENT], count=5, seed=1)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.text(), min_size=1, max_size=5, unique=True), st.integers(0, 30), st.randoms()
)
def test_a_questions_negatives_do_not_depend_on_other_questions(ids, count, random):
    def list_drawn(order):
        questions = [replace(QUESTION, id=id) for id in order]
        return {q.id: draw(q, [DOCUMENT], count=count) for q in questions}

    drawn = list_drawn(ids)
    assert list_drawn(random.sample(ids, len(ids))) == drawn
    for found in drawn.values():
        assert len(found) == len(set(found)) == min(count, len(NEGATIVES))
        assert set(found) <= NEGATIVES


CHINESE = "奥斯陆是挪威的首都，位于河边，人口很多。" * 6


@pytest.mark.parametrize(
    "text", [CHINESE, CHINESE.replace("。", ""), "x" * 400, "https://a/" + "b" * 300]
)
@pytest.mark.parametrize("target", ["passage", "prefix"])
def test_spans_end_with_their_rows_whatever_a_word_is(tokenizer, text, target):
    format = Format(tokenizer, titled=True, assessment="phrase", max_text=24)
    examples = ExamplesConfig(target=target)
    passage = Passage("p", "奥斯陆", text)
    question = Question("q", "奥斯陆在哪里？", ("挪威",), {"p": 1})
    rows = [*make_index_rows(format, [passage], examples, seed=0)]
    rows += make_question_rows(format, question, {"p": passage}, [], examples)
    for row in rows:
        assert all(start < stop <= len(row.tokens) for start, stop in row.spans.values())
        start, stop = row.spans["retrieval"]
        assert stop - start <= len(format.encode_title(passage.title)) + format.max_text


def test_a_chinese_prefix_has_as_many_words(format):
    examples = ExamplesConfig(target="prefix", prefix_words=3)
    assert cut_target(format, CHINESE, examples) == len(format.encode_text("奥斯陆是挪威"))
    assert split_sentences(CHINESE) == ["奥斯陆是挪威的首都，位于河边，人口很多。"] * 6
