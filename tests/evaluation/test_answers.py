import itertools
import math
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from rag_jax.evaluation.answers import (
    bleu_1,
    calibrate,
    choice_match,
    compute_accuracy,
    contains_answer,
    distinct_ngrams,
    exact_match,
    f1,
    match,
    normalize_answer,
    pick_choice,
    popularity_thirds,
    rouge_l,
)
from rag_jax.evaluation.questions import q_bleu_1
from rag_jax.evaluation.texts import list_words
from rag_jax.runtime.errors import RagJaxError


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("A an the", ""),
        ("Washington, D.C.", "washington dc"),
        ("theatre", "theatre"),
        ("Cote d\u2019Ivoire", "cote divoire"),
        ("Cafe\u0301", "caf\u00e9"),
        ("\u6771\u4eac\u3002", "\u6771\u4eac"),
        ("\uff34\uff4f\uff4b\uff59\uff4f", "tokyo"),
        ("5\u00a0$ + 3", "5 3"),
        ("Paris\u200e, \ufeffinter\u00adnational", "paris international"),
        ("", ""),
    ],
)
def test_normalize_answer(text, normal):
    assert normalize_answer(text) == normal


def test_exact_match():
    assert exact_match("the Paris.", ["London", "Paris"]) == 1
    assert exact_match("Paris, France", ["Paris"]) == 0
    assert exact_match("", ["Paris"]) == 0
    assert exact_match("\u22125 \u00b0C", ["-5 \u00b0C"]) == exact_match("-5", ["\u22125"]) == 1


def test_thoughts_are_not_graded():
    thought = "<think>Is it Paris? No, it is Lyon.</think>\nLyon"
    for metric in (exact_match, f1, match, contains_answer):
        assert metric(thought, ["Lyon"]) == 1
        assert metric(thought, ["Paris"]) == 0
        assert metric("<think>Is it Paris? It is", ["Paris"]) == 0
    assert rouge_l(thought, ["Lyon"]) == bleu_1([thought], [["Lyon"]]) == pytest.approx(1)
    assert rouge_l(thought, ["Paris"]) == bleu_1([thought], [["Paris"]]) == 0
    asked = "Which town is it?"
    assert q_bleu_1(f"<think>Is it Paris?</think>{asked}", [asked]) == pytest.approx(1)


def test_f1_by_hand():
    # Two of three predicted words, two of two in the answer: 2 * 2 / (3 + 2).
    assert f1("big New York", ["New York"]) == pytest.approx(0.8)
    assert f1("big New York", ["Boston", "New York"]) == pytest.approx(0.8)
    # A word counts as often as both have it.
    assert f1("b b b", ["b c"]) == pytest.approx(2 / 5)
    assert f1("", ["Paris"]) == 0
    assert f1("the", ["a"]) == 0


@pytest.mark.parametrize("answer", ["A", "The", "the a", "!!!", "?", "+"])
def test_an_answer_that_normalises_to_nothing_is_compared_as_it_is(answer):
    for score in (exact_match, f1, match):
        assert score(answer, [answer]) == score(f" {answer.lower()} ", [answer]) == 1
        assert score("", [answer]) == score("an", [answer]) == score("Paris", [answer]) == 0
    # An alias without words does not make a blank prediction right.
    assert exact_match("", [answer, "Paris"]) == f1(" ", [answer, "Paris"]) == 0
    assert match(f"It says {answer} there", [answer]) == 1


def test_an_article_as_the_answer_keeps_its_capitals():
    assert match("It is a town.", ["A"]) == 0
    assert match("The group is A, not AB.", ["A"]) == 1


def test_match_is_of_whole_words():
    assert match("It is in Nigeria.", ["Niger"]) == 0
    assert match("It is in Niger.", ["Niger"]) == 1
    assert match("New  York City", ["york new", "new york"]) == 1
    assert (
        match("\u041c\u043e\u0441\u043a\u0432\u0430!", ["\u043c\u043e\u0441\u043a\u0432\u0430"])
        == 1
    )
    assert match("", ["Paris"]) == 0
    assert match("anything", ["?"]) == 0
    assert match("", ["?"]) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "held"),
    [
        ("It is Paris\u2014the capital.", "Paris", 1),
        ("Paris/France, or Rome,Italy", "Italy", 1),
        ("<answer>Paris</answer>", "Paris", 1),
        ("**Answer:**Paris", "Paris", 1),
        ("Paris\u2019s centre", "Paris", 1),
        ("from 1990\u20131995", "1990", 1),
        ("from 1990-1995", "1990", 1),
        ("from 1990-1995", "1995", 1),
        ("call 555-1234", "1234", 0),
        ("It costs \u20ac5", "5", 1),
        ("5\u20ac a day", "5", 1),
        ("Vitamin B12", "Vitamin A", 0),
        ("the vitamin A", "Vitamin A", 1),
        ("Serie B", "Serie A.", 0),
        ("It plays in the Serie A (Italy)", "The Serie A", 1),
        ("hepatitis A", "hepatitis A", 1),
        ("AC/DC", "AC/DC", 1),
        ("the U.S. Navy", "US Navy", 1),
        ("USA", "the U.S.A.", 1),
        ("It is the USA.", "U.S.A.", 1),
        ("hepatitis (a), not B", "Hepatitis A", 1),
        ("3.5 or 1,990 or 3/4 at 12:30", "3", 0),
        ("3.5 or 1,990 or 3/4 at 12:30", "990", 0),
        ("3.5 or 1,990 or 3/4 at 12:30", "30", 0),
        ("Jean-Paul", "Paul", 0),
        ("Niger-Congo", "Niger", 0),
    ],
)
def test_punctuation_between_words(prediction, answer, held):
    assert match(prediction, [answer]) == held
    assert match(answer, [answer]) == 1


def test_yes_and_no_are_verdicts():
    assert match("Yes. There is no doubt about it.", ["yes"]) == 1
    assert match("Yes. There is no doubt about it.", ["no"]) == 0
    assert match("There is no doubt about it: yes", ["yes"]) == 1
    assert match("No, yes would be wrong", ["no", "maybe"]) == match("no way", ["no way"]) == 1
    assert match("No, yes would be wrong", ["yes"]) == match("Norway", ["no"]) == 0
    # A noun follows, or what the prediction concludes does.
    assert match("There are no records of it. So the answer is yes.", ["yes"]) == 1
    assert match("There are no records of it. So the answer is yes.", ["no"]) == 0
    assert match("No such rule exists, hence yes", ["no"]) == match("I have no idea.", ["no"]) == 0
    assert match("There is no limit. Yes.", ["yes"]) == match("**Answer:** No", ["no"]) == 1
    assert match("Yes? The answer is no.", ["no"]) == match("no\nIt is old", ["no"]) == 1
    assert match("No it is not", ["no"]) == match("no", ["no"]) == 1
    assert match("No the claim is old", ["no"]) == match("no is my answer", ["no"]) == 1
    # HotpotQA's script: they share no word with a longer text.
    assert f1("yes they are", ["yes"]) == f1("no", ["no it was"]) == f1("noanswer x", ["x"]) - 2 / 3
    assert f1("Yes.", ["yes"]) == 1 and f1("noanswer", ["noanswer"]) == 1


@pytest.mark.parametrize("score", [exact_match, f1, match])
def test_without_answers(score):
    with pytest.raises(RagJaxError, match="without answers"):
        score("Paris", [])
    with pytest.raises(TypeError):
        score("Paris", "Paris")


def test_contains_answer_is_letter_for_letter():
    assert contains_answer("It is in Nigeria.", ["Niger"]) == 1
    assert contains_answer("in paris", ["Paris"]) == 0
    assert contains_answer("anything", ["", " "]) == 0
    with pytest.raises(RagJaxError, match="without answers"):
        contains_answer("x", [])


SEAS = {"A": "salt water", "B": "water", "C": "The Sun's heat", "D": ""}
CLAIM = {"true": "SUPPORTS", "false": "REFUTES"}
FACT = {"true": "SUPPORTS", "false": "REFUTES", "unknown": "NOT ENOUGH INFO"}
TRUTH, VERDICT = {"A": "True", "B": "False"}, {"A": "Yes", "B": "No"}
SKY = {"A": "The Moon", "B": "The Sun", "C": "Mars", "D": "Venus"}
SIGNS = {"A": "3", "B": "-3", "C": "35", "D": "3.5", "E": "3/5"}


@pytest.mark.parametrize(
    ("text", "choices", "label"),
    [
        ("B", SEAS, "B"),
        (" (b).", SEAS, "B"),
        ("5%", {"A": "5", "B": "5%"}, "B"),
        ("5", {"A": "5", "B": "5%"}, "A"),
        ("5%.", {"A": "5 %", "B": "5"}, "A"),
        ("3!", {"A": "3", "B": "3!", "C": "-3"}, "B"),
        ("C#", {"1": "C", "2": "C++", "3": "C#"}, "3"),
        ("The language is C#", {"1": "C", "2": "C++", "3": "C#"}, "3"),
        ("It is C", {"1": "C", "2": "C++", "3": "C#"}, "1"),
        ("10\u00b0", {"A": "10", "B": "10\u00b0", "C": "-10"}, "B"),
        ("2:0", {"A": "2", "B": "20", "C": "2:0"}, "C"),
        ("1000", {"A": "1,000", "B": "-1,000"}, "A"),
        ("It is 1000", {"A": "1,000", "B": "-1,000"}, "A"),
        ("C) The water", SEAS, "C"),
        ("**C**: it is water", SEAS, "C"),
        ("The correct answer is A because of water", SEAS, "A"),
        ("Option: D", SEAS, "D"),
        ("A plant needs water.", SEAS, "B"),
        ("A plant needs SALT water!", SEAS, "A"),
        ("water, by the suns heat", SEAS, "B"),
        ("I would say C here", SEAS, "C"),
        ("A plant", SEAS, ""),
        ("It must be A", SEAS, "A"),
        ("ABC", SEAS, ""),
        ("", SEAS, ""),
        ("E", SEAS, ""),
        ("True", CLAIM, "true"),
        ("This is FALSE, not true.", CLAIM, "false"),
        ("REFUTES", CLAIM, "false"),
        ("untrue", CLAIM, ""),
        ("1", {"1": "x", "10": "y"}, "1"),
        ("10: y", {"1": "x", "10": "y"}, "10"),
        ("a (b", {"(": "b", "+": "x"}, "("),
        ("anything", {}, ""),
        ("A\nExplanation: water alone is no salt water.", SEAS, "A"),
        ("C\r\n\r\nSalt water is not it.", SEAS, "C"),
        ("A\tsalt or not, it is water", SEAS, "A"),
        ("A - the water", SEAS, "A"),
        ("[D] as water does not", SEAS, "D"),
        ("A is correct, and water is not.", SEAS, "A"),
        ("A is the correct answer: water", SEAS, "A"),
        ("A because of the water", SEAS, "A"),
        ("I think that A is right about water", SEAS, "A"),
        ("Answer: **D**\nNo water", SEAS, "D"),
        ("So the answer is:\n\nC\n\nWater is too cold.", SEAS, "C"),
        ("Thus $\\boxed{C}$, not water", SEAS, "C"),
        ("c) as water is cold", SEAS, "C"),
        ("The answer is d.", SEAS, "D"),
        ("Option A is wrong; the answer is C.", SEAS, "C"),
        ("It is not A but C", SEAS, "C"),
        ("The answer can't be A, so choose option D", SEAS, "D"),
        ("It is not water but the Sun's heat", SEAS, "C"),
        ("Water is wrong; it is the Sun's heat", SEAS, "C"),
        ("B is a distractor; the answer is C", SEAS, "C"),
        ("Not B", SEAS, ""),
        ("The computed answer is 11.\n\nAnswer seems to be A.", SEAS, "A"),
        ("Both A and B seem right, but B is more accurate.", SEAS, "B"),
        ("I considered (A), but it is incorrect. Final answer: D.", SEAS, "D"),
        ("The answer could be A.\nOption B is tempting.\n**Final Answer: C**", SEAS, "C"),
        ("ANSWER IS D. A is incorrect.", SEAS, "D"),
        ("The answer is C because I computed it.", SEAS | {"I": "ice"}, "C"),
        ("I would pick C - a safe choice.", SEAS | {"I": "ice"}, "C"),
        ("$\\boxed{\\langle B \\rangle}$ is large. **Answer: D**", SEAS, "D"),
        ("Antwort:\n\nAntwort: C", SEAS, "C"),
        ("b. 4", SEAS, "B"),
        ("\u0131) dotless", {"I": "ice", "J": "jam"}, "I"),
        ("\u017f\u017f: long", {"ss": "x", "t": "y"}, "ss"),
        ("False\nIt is true that the study exists.", CLAIM, "false"),
        ("It is not true that tea cures colds.", CLAIM, "false"),
        ("This isn't true.", CLAIM, "false"),
        ("This isn\u2019t entirely true.", CLAIM, "false"),
        ("I do not think that the claim is true.", CLAIM, "false"),
        ("That is no longer true", CLAIM, "false"),
        ("It is not false", CLAIM, "true"),
        ("It is true that tea is not a cure", CLAIM, "true"),
        ("1.5 km, so the answer is 2", {"1": "x", "2": "y"}, "2"),
        ("2\nbecause x is none", {"1": "x", "2": "y"}, "2"),
        ("Answer: rules out C, leaving D", SEAS, "D"),
        ("We can eliminate option A, so C", SEAS, "C"),
        ("Both A and B are wrong, so D", SEAS, "D"),
        ("A, B, and C were all incorrect: D", SEAS, "D"),
        ("It can't be A or B; it must be C.", SEAS, "C"),
        ("Not A, B or C. So D", SEAS, "D"),
        ("It is not A, B is right", SEAS, "B"),
        ("A or B? The answer is B", SEAS, "B"),
        ("A. Salt water is wrong. B. Water is wrong. C. The Sun's heat is right.", SEAS, "C"),
        ("A. Salt water is not all there is, but it is enough", SEAS, "A"),
        ("\u7b54\u6848\u662fB", SEAS, "B"),
        ("\u7b54\u6848\uff1a\uff23\u3002", SEAS, "C"),
        ("\uff22", SEAS, "B"),
        ("The answer is \u00c4hm, B", SEAS, "B"),
        ("The answer is A\u0308hm, B", SEAS, "B"),
        ("\u7b54\u6848\u662f\u7ea2\u8272\u3002", {"A": "\u7eff\u8272", "B": "\u7ea2\u8272"}, "B"),
        ("\u2461 it is", {"\u2460": "x", "\u2461": "y"}, "\u2461"),
        ("A) salt water\nB) water\nC) heat\n\nAnswer: B", SEAS, "B"),
        ("A. salt water - no\nB. water - yes\nThe correct answer is B.", SEAS, "B"),
        ("A: salt water B: water. The answer is B.", SEAS, "B"),
        ("B. Water\nA) and C) are wrong. Salt is no answer", SEAS, "B"),
        ("A. salt water\nB. water", SEAS, "A"),
        ("Answer: A\nAfter checking, I need to correct this.\nAnswer: B", SEAS, "B"),
        ("The answer is A. Wait, no, the answer is B.", SEAS, "B"),
        ("The answer is A. Option B is about something else.", SEAS, "A"),
        ("B. Water\nThe answer is B, as option A is salty.", SEAS, "B"),
        ("The answer is B.\n\nQuestion: Which one?\nAnswer: C", SEAS, "B"),
        ("\nQuestion: Which one?\nAnswer: C", SEAS, "C"),
        ("The answer is _B_", SEAS, "B"),
        ("A is right, it seems. Final choice: B", SEAS, "B"),
        ("True or false? False", CLAIM, "false"),
        ("Is it true or false? It is false.", CLAIM, "false"),
        ("True, or false? It SUPPORTS it", CLAIM, "true"),
        ("A, B or C? C", SEAS, "C"),
        ("true or false?", CLAIM, ""),
        *[(f"{text}", SIGNS, label) for label, text in SIGNS.items()],
        *[(f"The answer is {text}.", SIGNS, label) for label, text in SIGNS.items()],
        ("It is \u22123, not 3", SIGNS, "B"),
        ("isn't 3 but -3", SIGNS, "B"),
        ("C++ is faster", {"A": "C", "B": "C++"}, "B"),
        ("In C, as in C++", {"A": "C", "B": "C++"}, "A"),
        ("1/2 of it", {"A": "12", "B": "1/2"}, "B"),
        ("x > 3", {"A": "x < 3", "B": "x > 3"}, "B"),
        ("about 10^-3 m", {"A": "10^3 m", "B": "10^-3 m"}, "B"),
        # A text that is called the answer, after others that are mentioned.
        ("The Moon only reflects light. Answer: the Sun", SKY, "B"),
        ("Mars is too cold to shine, so the answer is the Sun.", SKY, "B"),
        ("The answer is not the Sun. Answer: Mars", SKY, "C"),
        ("The answer is Mars. No, the answer is Venus, not the Sun", SKY, "D"),
        ("It is 3, and so the answer is -3", SIGNS, "B"),
        # A label as the last line, and what a model has thought before.
        ("The Moon only reflects light.\n\nB", SKY, "B"),
        ("The Moon only reflects light.\n\n**B**\n", SKY, "B"),
        ("A) The Moon: no\nB) The Sun: yes\n\n(b).", SKY, "B"),
        ("<think>\nThe Moon reflects light.\n</think>\n\nB", SKY, "B"),
        ("<think>Maybe A? The answer could be A.</think>\nIt is the Sun", SKY, "B"),
        ("<think>So it is B</think> ", SKY, "B"),
        # "answer C" without a verb mentions it, and is one only without another.
        ("Answer: B\nExplanation: answer C is Mars, which is a planet.", SKY, "B"),
        ("The answer is B. Note that answer D (Venus) is close but not hot enough.", SKY, "B"),
        ("B is the correct answer. Answer C is the planet Mars, which is too cold.", SKY, "B"),
        ("So we take answer C", SKY, "C"),
        ("A is plausible, but B is better", SKY, "B"),
        ("Between option A and option B, I choose B", SKY, "B"),
        ("I'd go with option D rather than A", SKY, "D"),
        # What is only asked, and clauses of what is true.
        ("There is not enough information to say whether it is true or false.", FACT, "unknown"),
        ("It cannot be determined whether this is true.", FACT, ""),
        ("If the claim is true depends on more; false", CLAIM, "false"),
        ("There is no evidence that this claim is true.", CLAIM, "false"),
        ("There is no scientific proof that it is false", CLAIM, "true"),
        ("There is no doubt that this is true", CLAIM, "true"),
        ("While it's true that it can cause fever, the statement is false.", CLAIM, "false"),
        ("It is true that tea is old, but the claim as a whole is false.", CLAIM, "false"),
        ("There is no doubt: yes", {"A": "yes", "B": "no", "C": "maybe"}, "A"),
        ("Maybe; there is no proof", {"A": "yes", "B": "no", "C": "maybe"}, "C"),
        ("No way of knowing but no", {"A": "yes", "B": "no", "C": "maybe"}, "B"),
        # A conclusion behind other options.
        ("Option A is a satellite. The correct option is B.", SKY, "B"),
        ("Choice A is a moon. Choice C is a planet. The best choice is B.", SKY, "B"),
        ("A) reflects light. The correct choice is (B).", SKY, "B"),
        ("Option C is a planet. Selected option: B", SKY, "B"),
        ("Option C is a planet. Correct: B", SKY, "B"),
        ("Option C is a planet. Incorrect: B", SKY, "C"),
        ("Option C looks tempting; my choice is B", SKY, "B"),
        ("Option C is a planet. Hence, option B.", SKY, "B"),
        ("A is a moon. So B is left out, and C is as well", SKY, "A"),
        # All that are ruled out, and verdicts behind each.
        ("We can rule out A, C and D. B", SKY, "B"),
        ("Eliminating A, C, and D leaves B.", SKY, "B"),
        ("It is not A and B", SKY, "B"),
        ("A: incorrect\nB: correct\nC: incorrect", SKY, "B"),
        ("A) The Moon - Incorrect\nB) The Sun - Correct", SKY, "B"),
        ("A) The Moon (wrong)\nB) The Sun", SKY, "B"),
        # The text of a choice that is called the answer behind it, or marked.
        ("The Moon is a satellite. The Sun is the correct answer.", SKY, "B"),
        ("The Sun is the answer. The Moon reflects.", SKY, "B"),
        ("The Moon is not the right answer, nor Venus.", SKY, ""),
        ("The Moon reflects. \\boxed{\\text{The Sun}}", SKY, "B"),
        ("The Moon reflects.\n<answer>The Sun</answer>", SKY, "B"),
        ("\uc815\ub2f5\uc740 B\uc785\ub2c8\ub2e4.", SKY, "B"),
        ("B\uac00 \uc815\ub2f5\uc785\ub2c8\ub2e4.", SKY, "B"),
        ("e.g. the Sun", {**SKY, "E": "Jupiter"}, "B"),
        # Numbers keep their points and minus signs.
        ("3.0", {"A": "3", "B": "30"}, ""),
        ("The answer is -5.", {"A": "5", "B": "7"}, ""),
        ("The answer is 2.5", {"A": "25", "B": "2.5"}, "B"),
        ("It is \u22125 degrees", {"A": "5 degrees", "B": "-5 degrees"}, "B"),
        # "No" before a noun is not the answer.
        ("There is no scientific basis; yes it does", VERDICT, "A"),
        ("No studies deny that. Yes.", VERDICT, "A"),
        ("It has no effect", VERDICT, ""),
        ("No, it does not", VERDICT, "B"),
        ("No evidence", {"A": "some evidence", "B": "no evidence"}, "B"),
        # A choice's text that is denied from afar, and what is left out.
        ("I do not think that the claim is true.", TRUTH, "B"),
        ("I don't believe it is true", TRUTH, "B"),
        ("It is true", TRUTH, "A"),
        ("Option A is ruled out. Option B fits.", SKY, "B"),
        ("A can be eliminated. B", SKY, "B"),
        ("Mars can be excluded. It is the Sun", SKY, "B"),
        ("Eliminated: (A), (C). B", SKY, "B"),
        ("Ruled out: A. So B remains", SKY, "B"),
    ],
)
def test_pick_choice(text, choices, label):
    assert pick_choice(text, choices) == label
    for answer in ("A", "true"):
        assert choice_match(text, [answer], choices) == float(label == answer)


def test_choice_match_without_answers():
    with pytest.raises(RagJaxError, match="without answers"):
        choice_match("A", [], SEAS)
    assert choice_match("nothing of it", [""], SEAS) == 0


WILD = st.text(st.sampled_from("aAbB (.):*\n\\[+é\u0301가\U0001f600\0\u202e\ud800"), max_size=12)


@settings(max_examples=40)
@given(WILD, st.dictionaries(WILD, WILD, max_size=4))
def test_any_choices(prediction, choices):
    assert pick_choice(prediction, choices) in {"", *choices}
    for label in choices:
        if label.strip(" \n.:()") == label:
            assert pick_choice(label, choices).casefold() == label.casefold()


@given(
    st.sampled_from(["A", "B", "C", "D"]),
    st.sampled_from(["{}", "{}\n", "{}) ", "({}) ", "{}: ", "Answer: {}\n", "{} is correct. "]),
    st.lists(st.sampled_from(["water", "salt", "A", "the", "B", "is"]), max_size=5),
)
def test_what_comes_after_a_label_does_not_change_it(label, form, words):
    text = form.format(label)
    assert pick_choice(text if form == "{}" else text + " ".join(words), SEAS) == label


@settings(max_examples=40)
@given(WILD, st.lists(WILD, min_size=1, max_size=3))
def test_wild_texts_have_scores(prediction, answers):
    scores = [exact_match, f1, match, contains_answer]
    assert all(0 <= score(prediction, answers) <= 1 for score in scores)
    for form in ("NFC", "NFD"):  # however a character is written, the score is the same
        spelled = unicodedata.normalize(form, prediction)
        assert exact_match(spelled, answers) == exact_match(prediction, answers)


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_scores_agree(prediction, answers):
    em, overlap = exact_match(prediction, answers), f1(prediction, answers)
    held = match(prediction, answers)
    assert em in (0, 1) and held in (0, 1) and 0 <= overlap <= 1
    assert overlap >= em
    if em and normalize_answer(prediction):
        assert held == 1
    assert exact_match(prediction, [*answers, prediction]) == 1


def test_rouge_l_is_of_the_longest_common_subsequence():
    # Stems in common, in order: the, cat, sit, mat; 4 of 6 words and 4 of 5.
    score = rouge_l("The cats sat, on the mat!", ["the cat sat by mats", "dogs"])
    assert score == pytest.approx(2 * (4 / 6) * (4 / 5) / (4 / 6 + 4 / 5))
    assert rouge_l("", ["x"]) == 0
    with pytest.raises(RagJaxError, match="answers"):
        rouge_l("x", [])


@pytest.mark.parametrize(
    ("prediction", "answer", "common", "sizes"),
    [
        ("Москва столица России", "столица России - Москва", 2, (3, 3)),
        ("La capitale é Córdoba", "la capitale e\u0301 Co\u0301rdoba", 4, (4, 4)),
        ("東京は首都です。", "東京は日本の首都", 5, (7, 8)),
        ("हिन्दी एक भाषा", "हिन्दी भाषा है", 2, (3, 3)),
        ("القاهرة؟", "القاهرة", 1, (1, 1)),
        ("ประเทศ", "ประ", 3, (6, 3)),
        ("\uff34\uff4f\uff4b\uff59\uff4f", "tokyo", 1, (1, 1)),
    ],
)
def test_rouge_l_in_any_script(prediction, answer, common, sizes):
    precision, recall = common / sizes[0], common / sizes[1]
    wanted = 2 * precision * recall / (precision + recall)
    assert rouge_l(prediction, [answer]) == pytest.approx(wanted)


ENGLISH = st.text(st.characters(codec="ascii"), max_size=30) | st.lists(
    st.sampled_from(["the", "cats", "running_1", "U.S.", "don't", "3.5%", "national", "a"]),
    max_size=6,
).map(" ".join)


@settings(max_examples=60)
@given(ENGLISH, st.lists(ENGLISH, min_size=1, max_size=2))
def test_rouge_and_bleu_are_the_tools_own_in_ascii(prediction, answers):
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    assert rouge_l(prediction, answers) == max(
        theirs.score(answer, prediction)["rougeL"].fmeasure for answer in answers
    )
    scorer = BLEU(lowercase=True, max_ngram_order=1)
    score = scorer.corpus_score([prediction], [[answer] for answer in answers]).score / 100
    assert bleu_1([prediction], [answers]) == min(1.0, score)


def test_rouge_l_without_a_home_folder():
    """In a process of its own, because `nltk` looks for the folder while it is imported."""
    program = """if True:
        import os, pwd
        os.environ.pop("HOME", None)
        pwd.getpwuid = lambda uid: {}[uid]
        from rag_jax.evaluation.answers import rouge_l
        print(rouge_l("the cat", ["the cat"]), os.environ.get("HOME"))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1.0 None\n", done.stderr


def test_bleu_1_in_any_script():
    assert bleu_1(["北京是首都"], [["首都是北京"]]) == pytest.approx(1)
    assert bleu_1(["東京"], [["京都"]]) == pytest.approx(1 / 2)
    assert bleu_1(["«Москва»"], [["« Москва »"]]) == pytest.approx(1)
    # Two of three, and the mark is one of them, as "?" is in ASCII.
    assert bleu_1(["هي القاهرة؟"], [["مدينة القاهرة؟"]]) == pytest.approx(2 / 3)
    assert bleu_1(["e\u0301t\u00e9"], [["ÉTÉ"]]) == pytest.approx(1)
    assert bleu_1(["the cat\u2019s tail"], [["the cat\u2019s tail"]]) == pytest.approx(1)


@given(st.text(max_size=20), st.text(max_size=20))
def test_words_of_wild_texts(one, other):
    assert 0 <= rouge_l(one, [other]) <= 1 and 0 <= bleu_1([one], [[other]]) <= 1
    assert rouge_l(one, [one]) == float(bool(list_words(one)))


def test_bleu_1_clips_words_and_punishes_brevity():
    # Clipped matches: "the" twice of three times, then "a b"; 4 of 5 words; 5 words for 7.
    predictions, answers = ["the the the", "a b"], [["the cat the dog", "the"], ["a b c"]]
    precision, brevity = 4 / 5, math.exp(1 - 7 / 5)
    assert bleu_1(predictions, answers) == pytest.approx(precision * brevity)
    assert bleu_1(["x"], [["x"]]) == 1
    assert bleu_1([""], [["x"]]) == 0
    for predictions, answers in (([], []), (["x"], [[]])):
        with pytest.raises(RagJaxError, match="answers"):
            bleu_1(predictions, answers)


def test_distinct_ngrams_by_hand():
    # the-cat-sat, cat-sat-down; the-cat-sat again, and none of two words: 2 of 3.
    assert distinct_ngrams(["The cat sat down.", "the cat, sat!", "a cat"], 3) == 2 / 3
    assert distinct_ngrams(["a b a b a"], 2) == 2 / 4  # a-b and b-a, twice each
    assert distinct_ngrams(["北京是北京"], 1) == 3 / 5
    # No n-gram runs from one text into the next.
    assert distinct_ngrams(["a b", "c d"], 3) is None and distinct_ngrams([], 1) is None


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(1, 4))
def test_distinct_ngrams_of_wild_texts(texts, n):
    count, seen = 0, set()
    for words in map(list_words, texts):
        while len(words) >= n:
            count, seen, words = count + 1, seen | {tuple(words[:n])}, words[1:]
    share = distinct_ngrams(texts, n)
    assert share == (len(seen) / count if count else None)


@pytest.mark.parametrize(("ones", "n"), [(0, 10), (3, 10), (10, 10), (151, 300)])
def test_accuracy_is_wilsons(ones, n):
    accuracy, (low, high) = compute_accuracy([1] * ones + [0] * (n - ones))
    p, z = ones / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert accuracy == pytest.approx(p)
    assert low == pytest.approx(max(centre - half, 0), abs=1e-9)
    assert high == pytest.approx(min(centre + half, 1), abs=1e-9)


def test_accuracy_of_nothing():
    with pytest.raises(RagJaxError, match="scores"):
        compute_accuracy([])
    with pytest.raises(ValueError, match="zeros and ones"):
        compute_accuracy([0.5])


def test_popularity_thirds():
    assert popularity_thirds([5, 100, 1]) == ["middle", "head", "tail"]
    assert popularity_thirds([1, 1, 1, 1]) == ["head", "head", "middle", "tail"]
    assert popularity_thirds([]) == []
    assert popularity_thirds([None, 3, None, 7]) == ["", "middle", "", "head"]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_popularity_thirds_are_by_rank(popularities):
    labels = popularity_thirds(popularities)
    counts = [labels.count(x) for x in ("head", "middle", "tail")]
    assert sum(counts) == len(popularities) and max(counts) - min(counts) <= 1
    by_label = {x: [p for p, y in zip(popularities, labels, strict=True) if x == y] for x in labels}
    rank = ["head", "middle", "tail"]
    for upper, lower in itertools.pairwise(rank):
        if by_label.get(upper) and by_label.get(lower):
            assert np.min(by_label[upper]) >= np.max(by_label[lower])


def test_calibration_worked_by_hand():
    probabilities = np.asarray([0.05, 0.05, 0.95, 0.85, 1.0])
    outcomes = np.asarray([False, True, True, False, True])
    found = calibrate(probabilities, outcomes)
    assert [(b["n"], b["share"]) for b in found["bins"]] == [(2, 0.5), (1, 0.0), (2, 1.0)]
    assert [b["probability"] for b in found["bins"]] == pytest.approx([0.05, 0.85, 0.975])
    assert found["ece"] == pytest.approx((2 * 0.45 + 0.85 + 2 * 0.025) / 5)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(1, 12))
def test_calibration(pairs, bins):
    probabilities, outcomes = map(np.asarray, zip(*pairs, strict=True))
    found = calibrate(probabilities, outcomes, bins=bins)
    assert sum(b["n"] for b in found["bins"]) == len(pairs)
    happened = sum(b["n"] * b["share"] for b in found["bins"])
    assert happened == pytest.approx(outcomes.sum())
    assert 0 <= found["ece"] <= 1
