"""The comparison of methods on the same questions: answered, timed, graded, one file a method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import choice_match, compute_accuracy, match
from rag_jax.evaluation.rankings import check_run, write_run
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import write_jsonl
from rag_jax.runtime.hosts import is_first

Record = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A row of the comparison: the method itself, a baseline or an ablation.

    Attributes:
        name: of the row, and of the method's files.
        answer: gives a record for each question, in their order, with at least `"seconds"` where
            answers are timed. Methods may share one pass over the questions.
        rank: gives for each question the ids and scores of the passages found, best first; None for
            a method that does not rank.
        measures: for each number of the graded records that rates the ranking ir_measures' name,
            such as `{"mrr": "RR"}`.
    """

    name: str
    answer: Callable[[], Sequence[Record]]
    rank: Callable[[], Sequence[Sequence[tuple[str, float]]]] | None = None
    measures: Mapping[str, str] = field(default_factory=dict)


def judge(question: Question, prediction: str) -> float:
    """1 if a gold answer is in the prediction in whole words, else 0; see `match`.

    A question with choices needs the right choice, read off the prediction by `choice_match`.
    """
    if question.choices:
        return choice_match(prediction, question.answers, question.choices)
    return match(prediction, question.answers)


def compare(
    methods: Sequence[Method],
    questions: Sequence[Question],
    grade: Callable[[Question, Record], Record],
    folder: Path,
) -> None:
    """Answers and grades all questions by every method.

    Writes `<method>.jsonl`, a graded record a question, and for rankings `<method>.trec`. The
    numbers that rate a ranking are compared with those that ir_measures gives for the latter.

    Args:
        grade: adds the question and its scores to a record.
        folder: for the files.

    Raises:
        RagJaxError: as `write_run` and `check_run`.
    """
    ids = [question.id for question in questions]
    for method in methods:
        answers = zip(questions, method.answer(), strict=True)
        records = [grade(question, answer) for question, answer in answers]
        write_jsonl(folder / f"{method.name}.jsonl", records)
        if method.rank is not None:
            ranked = method.rank()  # in every process: a search may span them
            if is_first():
                path = folder / f"{method.name}.trec"
                write_run(path, method.name, ids, ranked)
                check_run(path, questions, records, method.measures)


def timed(
    run: Callable[[Sequence[Any]], Sequence[Record]],
) -> Callable[[Sequence[Any]], list[Record]]:
    """The same function of a batch, with each record's share of the time as `"seconds"`.

    Seconds of compiling are left out.
    """

    def run_timed(batch: Sequence[Any]) -> list[Record]:
        clock = Clock()
        records = run(batch)
        seconds = clock.read() / len(batch)
        return [record | {"seconds": seconds} for record in records]

    return run_timed


def describe_question(question: Question) -> Record:
    """The part of a graded record that names the question, its dataset if any, and its answers."""
    record = {"id": question.id, "question": question.question, "answers": question.answers}
    return record | ({"dataset": question.dataset} if question.dataset else {})


def split_by_dataset(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Every method's records by the dataset of a mixture; none of questions that name no dataset.

    Args:
        predictions: graded records of the same questions, by method.
    """
    rows = next(iter(predictions.values()))
    return {
        name: {
            method: [row for row in rows if row["dataset"] == name]
            for method, rows in predictions.items()
        }
        for name in dict.fromkeys(row["dataset"] for row in rows if "dataset" in row)
    }


def summarize_answers(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, main: str | None
) -> dict[str, Any]:
    """A method's numbers: `n`, means, `seconds_per_question`, and a 95 % interval as `ci95`.

    Args:
        names: of the numbers whose means are taken.
        main: the score, 0 or 1, that the interval is for; None for no interval.
    """
    seconds = mean_numbers(rows, ["seconds"]).get("seconds")
    numbers = {"n": len(rows), **mean_numbers(rows, names), "seconds_per_question": seconds}
    if main is not None:
        scores = [row[main] for row in rows]
        numbers["ci95"] = compute_accuracy(scores)[1] if rows else (0.0, 1.0)
    return numbers


def mean_numbers(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """The mean of each named number over the rows that have the number."""
    means = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if values:
            means[name] = float(np.mean(values))
    return means
