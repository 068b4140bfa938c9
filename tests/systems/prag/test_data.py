"""Parametric RAG's texts: prompts, answers, and a document's training examples."""

import pytest

from rag_jax.data.passages import Passage
from rag_jax.models import load
from rag_jax.systems.prag.data import Augmented, Format, make_examples

PASSAGE = Passage("city/1", "Gitega", "Gitega is a city in\nBurundi.")
PAIRS = (("Where is it?", "Burundi"), ("What is it?", "a city"), ("Its name?", "Gitega"))


@pytest.fixture(scope="module")
def tokenizer(llama_folder):
    return load(llama_folder).tokenizer


@pytest.fixture
def form(tokenizer):
    return Format(tokenizer, chat=False, max_text=200)


def spell(form, tokens):
    return form.tokenizer.decode(tokens)


def test_prompts(form):
    other = Passage("2", "", "No title.")
    assert spell(form, form.encode_prompt("Where  is it?", [PASSAGE, other])) == (
        "Passage 1: Gitega: Gitega is a city in Burundi.\nPassage 2: No title.\n\n"
        "Question: Where is it?\nThe answer is"
    )
    assert (
        spell(form, form.encode_prompt("Where is it?")) == "Question: Where is it?\nThe answer is"
    )


def test_chat_prompts_keep_the_instruction_without_passages(tokenizer):
    form = Format(tokenizer, chat=True, max_text=200)
    texts = [spell(form, form.encode_prompt("Where?", given)) for given in ([], [PASSAGE])]
    for text in texts:
        assert "Answer the question with a few words." in text and text.endswith("The answer is")
    assert "Passage 1: Gitega" in texts[1] and "Passage" not in texts[0]


def test_the_papers_five_examples(form):
    augmented = Augmented(("In Burundi lies Gitega.",), PAIRS)
    found = [spell(form, tokens) for tokens in make_examples(form, PASSAGE, augmented, questions=3)]
    original = "Passage 1: Gitega: Gitega is a city in Burundi.\n\n"
    rewrite = "Passage 1: Gitega: In Burundi lies Gitega.\n\n"
    assert found == [
        f"{original}Question: Where is it?\nThe answer is Burundi",
        f"{rewrite}Question: Where is it?\nThe answer is Burundi",
        f"{original}Question: What is it?\nThe answer is a city",
        f"{rewrite}Question: What is it?\nThe answer is a city",
        "Question: Its name?\nThe answer is Gitega",
    ]


def test_other_numbers_of_rewrites_and_questions(form):
    for rewrites in (0, 1, 2):
        for questions in (1, 2, 5):
            augmented = Augmented(("x",) * rewrites, PAIRS[:1])  # which repeats its own
            found = make_examples(form, PASSAGE, augmented, questions=questions)
            given = (questions + 1) // 2
            assert len(found) == given * (1 + rewrites) + questions - given
            assert all(tokens[-1] == form.tokenizer.eos_id for tokens in found)


def test_without_questions_the_texts_alone(form):
    found = make_examples(form, PASSAGE, Augmented(("x y",), ()), questions=3)
    assert [spell(form, tokens) for tokens in found] == [
        "Gitega: Gitega is a city in Burundi.",
        "Gitega: x y",
    ]


def test_long_texts_are_cut(tokenizer):
    form = Format(tokenizer, chat=False, max_text=3)
    assert form.is_cut(PASSAGE.text) and not form.is_cut("Gi")
    cut = form.cut_text(PASSAGE.text)
    assert "Gitega is a city in Burundi.".startswith(cut) and len(tokenizer.encode(cut)) <= 3
    assert form.cut_text("日本語の文章です") in "日本語の文章です"


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" Paris.\nQuestion: Where", "Paris"),
        (" Paris, the capital of France", "Paris"),
        (" 15,140 people", "15,140 people"),
        (" the U.S. dollar. It is used there.", "the U.S. dollar"),
        (" Paris. It is large.", "Paris"),
        ("", ""),
    ],
)
def test_answers_end_with_their_clause(form, written, answer):
    assert form.decode_answer(form.tokenizer.encode(written)) == answer
