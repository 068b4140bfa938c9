"""One rule for all systems' answers, and the numbers of a row: accuracy and costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.comparison.rows import Row, find_row, weigh_changes, weigh_documents
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import compute_accuracy
from rag_jax.evaluation.compare import Record, describe_question, judge, mean_numbers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.runtime.outside import parsing
from rag_jax.systems.embeddings import count_spared

COLUMNS = (
    *("n", "accuracy", "retrieval_rate", "prompt_tokens", "generated_tokens"),
    *("seconds_median", "seconds_95th", "offline_seconds", "bytes_a_document"),
    *("add_seconds", "remove_seconds"),
)
# What a prediction says of its costs, where the system counts them.
_COSTS = ("seconds", "prompt_tokens", "generated_tokens")
# What it says of how the answer came about, for the report's page.
_ORIGIN = ("source", "probabilities", "votes", "knowledge", "passages", "adapters")


def grade_rows(
    system: str, workdir: Path, questions: Sequence[Question]
) -> dict[str, list[Record]]:
    """The predictions of each row of a finished run, in the questions' order, graded by one rule.

    Rows are named `<system>.<method>`.

    Raises:
        RagJaxError: a file is damaged, or the run answered other questions.
    """
    with parsing(workdir / "report.json"):
        methods = list(read_json(workdir / "report.json")["methods"])
    rows = {}
    for method in methods:
        path = workdir / "predictions" / f"{method}.jsonl"
        with parsing(path):
            records = read_jsonl(path)
            graded = grade_records(records, questions, find_row(system, method))
        if graded is None:
            raise RagJaxError(
                f"{path}: answers other questions than the comparison asks; remove {workdir} and "
                "run the same command again"
            )
        rows[f"{system}.{method}"] = graded
    return rows


def grade_records(
    records: Sequence[Mapping[str, Any]], questions: Sequence[Question], row: Row
) -> list[Record] | None:
    """Graded records in the order of the questions; None if they are of other questions."""
    by_id = {record["id"]: record for record in records}
    if len(by_id) != len(records) or {*by_id} != {question.id for question in questions}:
        return None
    graded = []
    for question in questions:
        record = by_id[question.id]
        retrieved = record.get("retrieved") if row.searches is None else float(row.searches)
        if not isinstance(retrieved, int | float):  # passages that were reranked
            retrieved = None
        kept = (*_COSTS, *_ORIGIN)
        known = {name: record[name] for name in kept if record.get(name) is not None}
        graded.append(
            describe_question(question)
            | {"prediction": record["prediction"], **known}
            | ({} if retrieved is None else {"retrieved": retrieved})
            | {"correct": judge(question, record["prediction"])}
        )
    return graded


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """A row's numbers over its questions: accuracy with its interval, and costs a question."""
    accuracy, interval = compute_accuracy([record["correct"] for record in records])
    numbers = {"n": len(records), "accuracy": accuracy, "ci95": interval}
    means = mean_numbers(records, ["retrieved", "prompt_tokens", "generated_tokens"])
    if "retrieved" in means:
        numbers["retrieval_rate"] = means.pop("retrieved")
    seconds = [record["seconds"] for record in records if "seconds" in record]
    if seconds:
        median, high = np.quantile(seconds, (0.5, 0.95))
        means |= {"seconds_median": float(median), "seconds_95th": float(high)}
    return numbers | means


def weigh_row(
    system: str, method: str, workdir: Path, stages: Sequence[Mapping[str, Any]], passages: int
) -> dict[str, float]:
    """What a row costs beside its questions: seconds before any, and bytes and seconds a document.

    Embeddings that another run has made count as if this one had made them.

    Args:
        stages: the records of the run's stages.
        passages: number of passages of the corpus.
    """
    row = find_row(system, method)
    folder = workdir / "stages"
    weight = weigh_documents(row, folder, passages)
    if weight is None:
        return {}
    seconds = {
        stage["name"]: stage["seconds"] + count_spared(folder / stage["name"]) for stage in stages
    }
    offline = sum(own for name, own in seconds.items() if name in row.made_by)
    changes = weigh_changes(row, seconds, folder, passages)
    return {"offline_seconds": float(offline), "bytes_a_document": weight, **changes}


def list_frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points, cost and accuracy, that no other one beats in both; cheapest first.

    Of equal points all are listed.
    """
    best, frontier = -np.inf, []
    costs = sorted({cost for cost, _ in points.values()})
    for cost in costs:
        at = {name: score for name, (c, score) in points.items() if c == cost}
        top = max(at.values())
        if top > best:
            best = top
            frontier += [name for name, score in at.items() if score == top]
    return frontier
