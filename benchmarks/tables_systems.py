"""The tables of what the systems reach, from `results/systems`; see `tables.py`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rag_jax.comparison.grade import COLUMNS
from rag_jax.evaluation.pairs import tabulate_pairs
from rag_jax.evaluation.tables import tabulate_methods

RESULTS = Path(__file__).parent / "results" / "systems"

Rows = list[list[str]]

ENCYCLOPEDIA = "encyclopedia"
HALF = "PopQA, 0.5B"  # parameters of the model; all others have 135M
RUNS = {
    "srrag": {ENCYCLOPEDIA: "srrag", "PopQA": "srrag_popqa", HALF: "compare_popqa_srrag"},
    "rag": {ENCYCLOPEDIA: "rag", "SQuAD": "rag_squad", HALF: "compare_popqa_rag"},
    "self_retrieval": {
        ENCYCLOPEDIA: "self_retrieval",
        "SQuAD": "self_retrieval_squad",
        HALF: "self_retrieval_popqa",
    },
    "prag": {
        ENCYCLOPEDIA: "prag",
        "SQuAD": "prag_squad",
        "2WikiMultihopQA": "prag_2wiki",
        HALF: "compare_popqa_prag",
    },
    "dpr": {ENCYCLOPEDIA: "dpr", "SciFact": "dpr_scifact"},
}


def read_run(name: str) -> dict[str, Any]:
    """A run's results, as `systems.py` wrote them."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def read_bench(name: str) -> Any:
    """The results of a benchmark on a CPU."""
    return json.loads((RESULTS.parent / f"{name}_cpu.json").read_text("utf-8"))["results"]


def format_cell(name: str, numbers: Mapping[str, Any], score: str) -> str:
    """One number of a method; the score with the half of its interval's width."""
    value = numbers.get(name)
    if value is None:
        return ""
    text = f"{value:.1f}" if "tokens" in name else f"{value:.3f}"
    if name == score and "ci95" in numbers:
        low, high = numbers["ci95"]
        text += f" ± {(high - low) / 2:.3f}"
    return text


def list_methods(
    runs: Mapping[str, str],
    columns: Mapping[str, str],
    names: Mapping[str, str],
    *,
    score: str,
) -> Rows:
    """The methods of several runs, as rows of one table.

    Args:
        runs: names of results by what their questions are called.
        columns: headings by the number's name in the report.
        names: what methods are called, by their name in the report; others are left out.
        score: the number that the interval belongs to.
    """
    rows = [[*["data"] * (len(runs) > 1), "method", *columns.values()]]
    for data, run in runs.items():
        methods = read_run(run)["methods"]
        for name, shown in names.items():
            if name in methods:
                cells = [format_cell(column, methods[name], score) for column in columns]
                rows.append([*[data] * (len(runs) > 1), shown, *cells])
    return drop_empty(rows)


def drop_empty(rows: Rows) -> Rows:
    """The table without columns that have a heading alone."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


RAG_NAMES = {
    "shared_closed_book": "no passages",
    "closed_book": "no passages, trained without",
    "shared_bm25": "BM25",
    "bm25": "BM25, trained with it",
    "frozen": "retriever as it was",
    "token": "**trained together, RAG-Token**",
    "fast": "**RAG-Sequence Fast**",
    "thorough": "**RAG-Sequence Thorough**",
}
RAG = {
    "exact_match": "exact match",
    "f1": "F1",
    "answer@1": "answer in first",
    "answer@3": "first three",
    "answer@5": "first five",
}
SELF_RETRIEVAL = {
    "hits@1": "hits@1",
    "hits@5": "hits@5",
    "mrr@5": "MRR@5",
    "document_recall@1": "right document first",
    "exact_match": "exact match of the answer",
}
SELF_RETRIEVAL_NAMES = {
    "bm25": "BM25",
    "dense": "all-MiniLM-L6-v2 off the shelf",
    "dense_tuned": "all-MiniLM-L6-v2 trained on the same questions",
    "self_retrieval": "**Self-Retrieval**",
    "without_assessment": "without self-assessment",
    "without_indexing": "without indexing, at equal steps",
    "without_titles": "without titles",
}
DPR = {
    "answer@1": "answer in first",
    "answer@5": "in first five",
    "mrr": "MRR",
    "ndcg@10": "nDCG@10",
    "recall@100": "recall@100",
}
DPR_NAMES = {
    "bm25": "BM25",
    "untrained": "all-MiniLM-L6-v2 off the shelf",
    "trained": "**trained**",
}


def list_pairs(run: str, *scores: str) -> Rows:
    """Every method of a run against its reference, question by question."""
    paired = read_run(run)["paired"]
    rows = {
        method: {score: by_score[score] for score in scores if score in by_score}
        for method, by_score in paired["rows"].items()
    }
    return tabulate_pairs({**paired, "rows": rows})


def list_stages(run: str) -> Rows:
    """The seconds of a run's stages."""
    found = read_run(run)
    seconds = {name: value for name, value in found["seconds"].items()}
    rows = [["stage", "seconds"], *([name, f"{value:.1f}"] for name, value in seconds.items())]
    total, compiling = sum(seconds.values()), found["compile_seconds"]
    memory = found["peak_memory_bytes"] / 1e9
    return [
        *rows,
        ["**total**", f"**{total:.0f}**, {compiling:.0f} of them compiling; {memory:.1f} GB"],
    ]


HITS = {"rag_squad": "together with the generator", "rag_squad_retriever": "alone"}
_RETRIEVERS = {"bm25": "BM25", "frozen": "as it was", "joint": "**trained**"}


def list_hits() -> Rows:
    """How often the retrievers of RAG find an answer on SQuAD, and what training adds."""
    rows = [["trained", "retriever", "questions", "in first", "first five", "first twenty"]]
    rows[0] += ["trained - it, first five", "first twenty"]
    for run, trained in HITS.items():
        found = read_run(run)
        pairs = found["hits"]["rows"]
        title = next(title for title in found["tables"] if title.startswith("retrievers alone"))
        for name, *hits in found["tables"][title][1:]:
            row = [trained, _RETRIEVERS[name], title.split()[2], *(f"{hit:.3f}" for hit in hits)]
            for score in ("answer@5", "answer@20"):
                row.append(format_pair(pairs[name][score], sign=-1) if name in pairs else "")
            rows.append(row)
    return rows


def format_pair(pair: Mapping[str, Any], *, sign: int = 1) -> str:
    """A paired difference with its interval; -1 as `sign` for the reference's from the row."""
    difference, *ends = (sign * end + 0.0 for end in (pair["difference"], *pair["ci95"]))
    low, high = sorted(ends)
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


def find_table(run: str, words: str) -> list[list[Any]]:
    """The table of a run's report whose title has these words."""
    (table,) = (t for title, t in read_run(run)["tables"].items() if words in title)
    return table


def list_table(run: str, words: str) -> Rows:
    """As `find_table`, with its numbers as text."""
    table = find_table(run, words)
    return [[c if isinstance(c, str) else f"{c:.3f}" for c in row] for row in table]


def list_compared(run: str) -> Rows:
    """The rows of a comparison of systems, with where their knowledge comes from."""
    report = read_run(run)
    kinds = {name: texts for name, *texts in report["tables"]["what the rows are"][1:]}
    (_, _, *head), *rows = tabulate_methods(report["methods"], COLUMNS)
    return [
        ["row", "knowledge", "model", *head],
        *([name, *kinds[name], *numbers] for name, _, *numbers in rows),
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "rag": lambda: list_methods(RUNS["rag"], RAG, RAG_NAMES, score="exact_match"),
    "rag_pairs": lambda: list_pairs("rag", "exact_match"),
    "rag_hits": list_hits,
    "rag_memory": lambda: list_table("rag", "revision"),  # answers with the index of another one
    "self_retrieval": lambda: list_methods(
        RUNS["self_retrieval"], SELF_RETRIEVAL, SELF_RETRIEVAL_NAMES, score="hits@1"
    ),
    "self_retrieval_pairs": lambda: list_pairs("self_retrieval", "hits@1", "exact_match"),
    "self_retrieval_squad_pairs": lambda: list_pairs("self_retrieval_squad", "hits@1", "mrr@5"),
    "self_retrieval_epochs": lambda: list_table("self_retrieval_squad", "after each epoch"),
    "compare": lambda: list_compared("compare"),
    "compare_factbook": lambda: list_compared("compare_factbook"),
    "compare_popqa": lambda: list_compared("compare_popqa"),
    "dpr": lambda: list_methods(RUNS["dpr"], DPR, DPR_NAMES, score="answer@1"),
}
