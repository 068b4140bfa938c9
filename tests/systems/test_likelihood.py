"""The threshold of likelihood: its choice, what is measured, and a folder that has none."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.data.questions import Collection, Question
from rag_jax.pipeline.ask import Threshold
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems.likelihood import (
    STAGE,
    Reader,
    choose_threshold,
    open_threshold,
    run_likelihood,
)

QUESTIONS = [Question(str(i), f"question {i}", (f"answer {i}",), {}) for i in range(8)]
VALUES = [-3.0, -2.5, -0.5, -2.0, -0.25, -1.0, -4.0, None]
RIGHT = [False, True, True, False, True, True, False, False]


def answer(i):
    return f"The answer {i}!" if RIGHT[i] else ""


def read(questions):
    numbers = [int(question.split()[1]) for question in questions]
    return [(answer(i), VALUES[i]) for i in numbers]


def choose_slowly(likelihoods, right):
    """The best balanced accuracy over all divisions of the answers, and its lowest threshold."""
    pairs = list(zip(likelihoods, right, strict=True))
    values, best = sorted(set(likelihoods)), (0.5, None)
    for low, high in itertools.pairwise(values):
        threshold = (low + high) / 2
        kept = [value >= threshold for value, is_right in pairs if is_right]
        found = [value < threshold for value, is_right in pairs if not is_right]
        balanced = (sum(kept) / len(kept) + sum(found) / len(found)) / 2
        if balanced > best[0]:
            best = balanced, threshold
    return best


@given(
    st.lists(st.tuples(st.integers(-6, 0), st.booleans()), min_size=2, max_size=12).filter(
        lambda pairs: len({is_right for _, is_right in pairs}) == 2
    )
)
def test_the_threshold_with_the_best_balanced_accuracy(pairs):
    likelihoods, right = map(list, zip(*pairs, strict=True))
    balanced, threshold = choose_slowly(likelihoods, right)
    found = choose_threshold(np.asarray(likelihoods, float), np.asarray(right))
    if threshold is None:
        assert found is None
        return
    assert (found["balanced_accuracy"], found["threshold"]) == (balanced, threshold)
    assert (found["right_kept"] + found["wrong_found"]) / 2 == balanced


@pytest.mark.parametrize(
    ("likelihoods", "right"),
    [([], []), ([-1], [True]), ([-1, -2], [True] * 2), ([-1, -2], [False] * 2),
     ([-1, -1], [True, False]), ([-1, -2], [False, True])],
)  # fmt: skip
def test_no_threshold_is_better_than_chance(likelihoods, right):
    assert choose_threshold(np.asarray(likelihoods, float), np.asarray(right, bool)) is None


def make_stage(questions, open_reader, **settings):
    def choose(corpus, split, count):
        if not corpus.questions[split]:
            raise RagJaxError("there are none")
        return corpus.questions[split]

    def run(context):
        corpus = Collection([], {"dev": questions})
        run_likelihood(context, corpus=corpus, choose_questions=choose, open_reader=open_reader)

    return Stage(STAGE, run, settings)


def test_what_is_measured_and_where_it_is_found_again(tmp_path, capsys):
    stages = [make_stage(QUESTIONS, lambda context: Reader(read), beams=1)]
    run_stages(stages, tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "stages" / STAGE / "answers.jsonl")
    assert [record["right"] for record in records] == RIGHT
    assert [record["likelihood"] for record in records] == VALUES
    measured = read_json(tmp_path / "run" / "stages" / STAGE / "likelihood.json")
    # Between -2 and -1: all three wrong answers are under it, and three of four right ones not.
    numbers = {"threshold": -1.5, "balanced_accuracy": 0.875, "right_kept": 0.75}
    assert {name: measured[name] for name in numbers} == numbers
    assert (measured["n"], measured["right"], measured["wrong_found"]) == (7, 4, 1.0)
    capsys.readouterr()
    assert open_threshold(stages, tmp_path / "run") == Threshold(-1.5, 4, 3, 3, 3)
    assert capsys.readouterr().err == ""
    # Asked with other settings, by a run without the stage, or in an older folder.
    other = [make_stage(QUESTIONS, lambda context: Reader(read), beams=2)]
    for asked, folder, reason in (
        (other, "run", "stage likelihood: settings changed (beams: 1 -> 2)"),
        ([], "run", "whether an answer is right is not measured"),
        (stages, "older", "there is no finished run"),
    ):
        assert open_threshold(asked, tmp_path / folder) is None
        said = capsys.readouterr().err
        assert said.startswith("answers get no verdict") and reason in said
    (tmp_path / "run" / "stages" / STAGE / "likelihood.json").write_text("{")
    assert open_threshold(stages, tmp_path / "run") is None
    assert "likelihood.json removed, cut short or altered" in capsys.readouterr().err


def test_a_run_without_development_questions_says_so(tmp_path, capsys):
    stages = [make_stage([], lambda context: pytest.fail("nothing is to be read"))]
    run_stages(stages, tmp_path)
    assert open_threshold(stages, tmp_path) is None
    assert "there are no 'dev' questions" in capsys.readouterr().err


def test_a_question_that_the_reader_refuses_is_left_out(tmp_path, capsys):
    batches = []

    def read_short(questions):
        batches.append(len(questions))
        if "question 3" in questions:
            raise RagJaxError("the question is too long")
        return read(questions)

    stage = make_stage(QUESTIONS, lambda context: Reader(read_short))
    stage.run(StageContext(stage, tmp_path, folder=tmp_path))
    assert batches == [8, *[1] * 8]
    assert "left out: the question is too long" in capsys.readouterr().err
    records = read_jsonl(tmp_path / "answers.jsonl")
    assert [record["likelihood"] for record in records] == [*VALUES[:3], None, *VALUES[4:]]
    assert read_json(tmp_path / "likelihood.json")["n"] == 6


def test_all_answers_are_wrong(tmp_path, capsys):
    wrong = [Question(q.id, q.question, ("another",), {}) for q in QUESTIONS]
    stages = [make_stage(wrong, lambda context: Reader(read))]
    run_stages(stages, tmp_path)
    assert open_threshold(stages, tmp_path) is None
    reason = "no threshold tells the 0 right ones of 7 answers to the 'dev' questions from the"
    assert reason in capsys.readouterr().err
