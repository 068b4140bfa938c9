"""What a comparison of systems finds in the work folder of a finished run."""

from rag_jax.comparison.grade import grade_rows, summarize, weigh_row
from rag_jax.comparison.rows import find_row
from rag_jax.data.questions import load_collection
from rag_jax.runtime.files import read_json, read_jsonl

# Stages that only some settings have.
OPTIONAL = {"thresholds", "indexing", "warm_up"}


def check_rows(system, workdir):
    """Grades and weighs every row; the artefacts that a row is explained by are there.

    Returns:
        The rows' numbers.
    """
    report, corpus = read_json(workdir / "report.json"), load_collection(workdir / "stages/corpus")
    method = next(iter(report["methods"]))
    asked = {row["id"] for row in read_jsonl(workdir / "predictions" / f"{method}.jsonl")}
    by_id = {q.id: q for listed in corpus.questions.values() for q in listed if q.id in asked}
    stages, numbers = {stage["name"] for stage in report["stages"]}, {}
    for name, records in grade_rows(system, workdir, list(by_id.values())).items():
        method = name.partition(".")[2]
        row, own = find_row(system, method), report["stages"]
        assert {*row.made_by} - OPTIONAL <= stages
        assert all(list((workdir / "stages").glob(pattern)) for pattern in row.keeps)
        weighed = weigh_row(system, method, workdir, own, len(corpus.passages))
        assert not row.keeps or weighed["bytes_a_document"] > 0
        assert not (row.growing or row.remade) or weighed["add_seconds"] > 0
        assert not row.made_by or weighed["offline_seconds"] > 0
        numbers[method] = summarize(records) | weighed
    return numbers
