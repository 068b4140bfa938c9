"""Parametric RAG's texts: prompts, answers, a document's training examples, and their groups."""

import numpy as np
import pytest

from rag_jax.data.passages import Passage
from rag_jax.models import load
from rag_jax.systems.prag.config import AugmentConfig
from rag_jax.systems.prag.data import (
    MAX_PADDING,
    MOST_PADDING,
    MOST_PROGRAMS,
    Augmented,
    Format,
    Pair,
    Variant,
    count_examples,
    group_documents,
    make_examples,
    repeat_examples,
)
from rag_jax.systems.prag.demonstrations import DEMONSTRATIONS

PASSAGE = Passage("city/1", "Gitega", "Gitega is a city in\nBurundi.")
PAIRS = (
    Pair("Where is it?", "Burundi", "It lies in Burundi."),
    Pair("What is it?", "a city", "Gitega is a city."),
    Pair("Its name?", "Gitega", "Its name is Gitega."),
)


@pytest.fixture(scope="module")
def tokenizer(llama_folder):
    return load(llama_folder).tokenizer


@pytest.fixture
def format(tokenizer):
    return Format(tokenizer, chat=False, max_text=200)


def spell(format, tokens):
    return format.tokenizer.decode(tokens)


def test_prompts(format):
    other = Passage("2", "", "No title.")
    assert spell(format, format.encode_prompt("Where  is it?", [PASSAGE, other])) == (
        "Passage 1: Gitega: Gitega is a city in Burundi.\nPassage 2: No title.\n\n"
        "Question: Where is it?\nThe answer is"
    )
    assert (
        spell(format, format.encode_prompt("Where is it?"))
        == "Question: Where is it?\nThe answer is"
    )


def test_augmentations_are_read_after_their_passage(format):
    other = Passage("2", "", "No title.")
    augmented = {PASSAGE.id: Augmented(("In Burundi\nlies Gitega.",), PAIRS[:2])}
    prompt = format.encode_prompt("Where is it?", [PASSAGE, other], augmented=augmented)
    assert spell(format, prompt) == (
        "Passage 1: Gitega: Gitega is a city in Burundi.\n"
        "Passage 1: Gitega: In Burundi lies Gitega.\n"
        "Question: Where is it?\nAnswer: Burundi\nQuestion: What is it?\nAnswer: a city\n"
        "Passage 2: No title.\n\nQuestion: Where is it?\nThe answer is"
    )


def test_chat_prompts_keep_the_instruction_without_passages(tokenizer):
    format = Format(tokenizer, chat=True, max_text=200)
    texts = [spell(format, format.encode_prompt("Where?", given)) for given in ([], [PASSAGE])]
    for text in texts:
        assert "Answer the question with a few words." in text and text.endswith("The answer is")
    assert "Passage 1: Gitega" in texts[1] and "Passage" not in texts[0]


def test_the_papers_five_examples(format):
    augmented = Augmented(("In Burundi lies Gitega.",), PAIRS)
    found = [
        spell(format, tokens) for tokens in make_examples(format, PASSAGE, augmented, questions=3)
    ]
    original = "Passage 1: Gitega: Gitega is a city in Burundi.\n\n"
    rewrite = "Passage 1: Gitega: In Burundi lies Gitega.\n\n"
    assert found == [
        f"{original}Question: Where is it?\nThe answer is Burundi",
        f"{rewrite}Question: Where is it?\nThe answer is Burundi",
        f"{original}Question: What is it?\nThe answer is a city",
        f"{rewrite}Question: What is it?\nThe answer is a city",
        "Question: Its name?\nThe answer is Gitega",
    ]


def test_other_numbers_of_rewrites_and_questions(format):
    for rewrites in (0, 1, 2):
        for questions in (1, 2, 5):
            augmented = Augmented(("x",) * rewrites, PAIRS[:1])  # which repeats its own
            found = make_examples(format, PASSAGE, augmented, questions=questions)
            given = (questions + 1) // 2
            assert len(found) == given * (1 + rewrites) + questions - given
            assert all(tokens[-1] == format.tokenizer.eos_id for tokens in found)


# Reasoning.


def test_reasoned_prompts(tokenizer):
    format = Format(tokenizer, chat=False, max_text=200, reasoning=True, demonstrations=2)
    shown = "\n\n".join(f"Question: {q}\nAnswer: {a}" for q, a in DEMONSTRATIONS[:2])
    assert spell(format, format.encode_prompt("Where is it?", [PASSAGE])) == (
        f"{shown}\n\nPassage 1: Gitega: Gitega is a city in Burundi.\n\n"
        "Question: Where is it?\nAnswer:"
    )
    chat = Format(tokenizer, chat=True, max_text=200, reasoning=True)
    text = spell(chat, chat.encode_prompt("Where is it?"))
    assert "Answer the question step by step." in text and text.endswith("Answer:")


def test_reasoned_examples_end_with_full_answers(tokenizer):
    format = Format(tokenizer, chat=False, max_text=200, reasoning=True)
    examples = make_examples(format, PASSAGE, Augmented(("x",), PAIRS), questions=3)
    texts = [spell(format, tokens) for tokens in examples]
    full = [pair.full_answer for pair in PAIRS]
    ends = [full[0], full[0], full[1], full[1], full[2]]
    assert all(t.endswith(f"Answer: {e}") for t, e in zip(texts, ends, strict=True))
    assert format.state_answer("Oslo") == "So the answer is Oslo."


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("It lies in Oslo. So the answer is Norway.\n\nQuestion: And?", "Norway"),
        ("So the answer is: the U.S. dollar. It is old.", "the U.S. dollar"),
        ("The Answer is 15,140. So the answer is 3.", "15,140"),
        ("It lies in Norway. That is all.", "It lies in Norway"),  # never says what it is
        ("The answers are many", "The answers are many"),
        ("So the answer is", ""),
    ],
)
def test_reasoned_answers_are_read_after_the_answer_is(tokenizer, written, answer):
    format = Format(tokenizer, chat=False, max_text=200, reasoning=True)
    assert format.decode_answer(tokenizer.encode(written)) == answer


def test_demonstrations_say_their_answers(tokenizer):
    """Each is read as a test answer is read; as many as the released code has for HotpotQA."""
    format = Format(tokenizer, chat=False, max_text=200, reasoning=True)
    answers = [format.decode_answer(tokenizer.encode(text)) for _, text in DEMONSTRATIONS]
    assert len(DEMONSTRATIONS) == 11 and all(0 < len(a.split()) <= 4 for a in answers)
    for (question, text), answer in zip(DEMONSTRATIONS, answers, strict=True):
        assert question.endswith("?") and text.endswith(f"So the answer is {answer}.")


# Variants.


@pytest.mark.parametrize("chat", [False, True])
def test_without_questions_the_prompt_up_to_them(tokenizer, chat):
    format = Format(tokenizer, chat=chat, max_text=200)
    found = make_examples(format, PASSAGE, Augmented(("x y",), ()), questions=3)
    texts = ["Passage 1: Gitega: Gitega is a city in Burundi.", "Passage 1: Gitega: x y"]
    for tokens, text, version in zip(found, texts, (PASSAGE.text, "x y"), strict=True):
        passage = Passage("", PASSAGE.title, version)
        whole = format.encode_prompt("Where is it?", [passage])
        same = [a == b for a, b in zip(tokens, whole, strict=False)]
        shared = [*same, False].index(False)
        assert spell(format, tokens[:shared]).endswith(text)
        assert spell(format, tokens).strip().endswith(text) or chat
        assert "Question" not in spell(format, tokens)


@pytest.mark.parametrize("rewrites", [0, 1, 2])
@pytest.mark.parametrize("questions", [0, 1, 2, 3, 5])
def test_every_variant_takes_the_steps_of_the_whole_recipe(format, rewrites, questions):
    if not rewrites + questions:
        return
    augment = AugmentConfig(by="model", rewrites=rewrites, questions=questions)
    whole = Augmented(("x", "y")[:rewrites], PAIRS[:questions])
    steps = count_examples(augment)
    assert steps == len(make_examples(format, PASSAGE, whole, questions=questions))
    for variant in (
        Variant("random"),
        Variant("random", rewrites=False),
        Variant("random", questions=False),
    ):
        own = make_examples(format, PASSAGE, variant.reduce(whole), questions=questions)
        repeated = repeat_examples(own, steps)
        assert len(repeated) == steps and repeated[: len(own)] == own
        counts = [repeated.count(tokens) for tokens in own]
        assert max(counts) - min(counts) <= max(own.count(tokens) for tokens in own)


def test_the_papers_recipe_has_five_steps():
    assert count_examples(AugmentConfig()) == 5


def test_long_texts_are_cut(tokenizer):
    format = Format(tokenizer, chat=False, max_text=3)
    assert format.is_cut(PASSAGE.text) and not format.is_cut("Gi")
    cut = format.cut_text(PASSAGE.text)
    assert "Gitega is a city in Burundi.".startswith(cut) and len(tokenizer.encode(cut)) <= 3
    assert format.cut_text("日本語の文章です") in "日本語の文章です"


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" Paris.\nQuestion: Where", "Paris"),
        (" Paris, the capital of France", "Paris"),
        (" 15,140 people", "15,140 people"),
        (" the U.S. dollar. It is used there.", "the U.S. dollar"),
        (" Paris. It is large.", "Paris"),
        (" J. R. R. Tolkien. He wrote", "J. R. R. Tolkien"),
        (" U.S. Army, founded", "U.S. Army"),
        (" the U.S. It is big", "the U.S"),
        (" September 21, 1937, when", "September 21, 1937"),
        (" English, Hindi and Bengali.", "English, Hindi and Bengali"),
        (" Paris, the capital and largest city", "Paris"),
        (" St. Louis, Missouri", "St. Louis"),
        (" Washington, D.C., in 1800", "Washington, D.C."),
        ("", ""),
    ],
)
def test_answers_end_with_their_clause(format, written, answer):
    assert format.decode_answer(format.tokenizer.encode(written)) == answer


# Groups.


@pytest.mark.parametrize("count", [1, 7, 45, 200])
@pytest.mark.parametrize("multiple", [1, 4])
def test_every_document_is_in_one_group_with_little_padding(count, multiple):
    rng = np.random.default_rng(count)
    passages = rng.integers(60, 140, (count, 1)) + rng.integers(0, 12, (count, 4))
    lengths = np.concatenate([passages, rng.integers(20, 32, (count, 1))], axis=1)
    groups = group_documents(lengths, together=16, program_tokens=1600, multiple=multiple)
    assert sorted(groups.order) == list(range(count))
    assert groups.size % multiple == 0 and groups.size <= 16
    computed = 0
    for number, widths in enumerate(groups.widths):
        members = groups.order[number * groups.size :][: groups.size]
        assert members and (lengths[members] <= np.asarray(widths)).all()
        computed += groups.size * sum(widths)
    assert groups.padding == pytest.approx(1 - lengths.sum() / computed)
    assert groups.programs <= MOST_PROGRAMS
    if count > 7:  # six programs are too few for less, with 45 documents in groups of four
        assert groups.padding < (MOST_PADDING if (count, multiple) == (45, 4) else MAX_PADDING)


def test_documents_of_one_length_share_a_program():
    groups = group_documents(np.full((64, 5), 96), together=16, program_tokens=1600)
    assert groups.size == 16 and groups.widths == [[96] * 5] * 4 and groups.padding == 0
