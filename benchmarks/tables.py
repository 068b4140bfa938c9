"""The tables of README and documentation, from `benchmarks/results`.

    python benchmarks/tables.py [--check]

Rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->` in README.md and docs. With
--check nothing is written, and the exit status is 1 if a table differs from its results.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = list[list[str]]

# Systems.

ENCYCLOPEDIA = "encyclopedia"


def read_run(name: str) -> dict[str, Any]:
    """A run's results, as `systems.py` wrote them."""
    return json.loads((RESULTS / "systems" / f"{name}.json").read_text("utf-8"))


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


SRRAG = {
    "accuracy": "accuracy",
    "head": "head",
    "middle": "middle",
    "tail": "tail",
    "retrieval_rate": "retrieval rate",
    "prompt_tokens": "prompt tokens",
    "generated_tokens": "generated",
}
SRRAG_METHODS = {
    "direct": "direct",
    "verbalise": "verbalise",
    "retrieve": "retrieve",
    "srrag": "**SR-RAG**",
    "without_knn": "without the datastore",
}
RAG_NAMES = {
    "closed_book": "no passages",
    "bm25": "BM25",
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
    "without_indexing": "without indexing",
    "without_titles": "without titles",
}
PRAG = {
    "exact_match": "exact match",
    "f1": "F1",
    "match": "holds an answer",
    "prompt_tokens": "prompt tokens",
}
PRAG_NAMES = {
    "direct": "direct",
    "in_context": "in the context",
    "parametric": "**in the parameters**",
    "both": "**both**",
    "random": "random documents' parameters",
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


def list_headlines() -> Rows:
    """Each system's method against the strongest baseline, on both kinds of data."""
    rows = [["system", "idea", "data", "score", "method", "strongest baseline"]]
    for page, title, idea, score, runs, method, baselines in (
        (
            "srrag",
            "Self-Routing RAG",
            "the model writes down what it knows, or searches",
            "accuracy",
            {ENCYCLOPEDIA: "srrag", "PopQA": "srrag_popqa"},
            "srrag",
            {"direct": "direct", "verbalise": "verbalise", "retrieve": "always retrieving"},
        ),
        (
            "rag",
            "RAG",
            "marginalise over passages, train both",
            "exact_match",
            {ENCYCLOPEDIA: "rag", "SQuAD": "rag_squad"},
            "thorough",
            {"closed_book": "no passages", "bm25": "BM25", "frozen": "frozen retriever"},
        ),
        (
            "self_retrieval",
            "Self-Retrieval",
            "one model is index, retriever, reranker",
            "hits@1",
            {ENCYCLOPEDIA: "self_retrieval", "SQuAD": "self_retrieval_squad"},
            "self_retrieval",
            {"bm25": "BM25", "dense": "MiniLM", "dense_tuned": "trained MiniLM"},
        ),
        (
            "prag",
            "Parametric RAG",
            "documents are LoRAs, merged for a question",
            "exact_match",
            {ENCYCLOPEDIA: "prag", "2WikiMultihopQA": "prag_2wiki"},
            "parametric",
            {"direct": "direct", "in_context": "in the context", "random": "random LoRAs"},
        ),
        (
            "dpr",
            "Dense retrievers",
            "encoders trained with hard negatives",
            "ndcg@10",
            {ENCYCLOPEDIA: "dpr", "SciFact": "dpr_scifact"},
            "trained",
            {"bm25": "BM25", "untrained": "MiniLM off the shelf"},
        ),
    ):
        for data, run in runs.items():
            methods = read_run(run)["methods"]
            best = max(baselines, key=lambda name: methods[name][score])
            rows.append(
                [
                    f"[{title}](PAGES/systems/{page}.md)",
                    idea,
                    data,
                    score.replace("_", " ").replace("ndcg", "nDCG"),
                    format_cell(score, methods[method], score),
                    f"{format_cell(score, methods[best], score)} ({baselines[best]})",
                ]
            )
    return rows


def list_srrag_ablations() -> Rows:
    """What SR-RAG is compared with."""
    names = {
        "raw_verbalise": "untrained model, verbalising",
        "raw_retrieve": "untrained model, retrieving",
        "selective": "selective retrieval (threshold 0.2)",
        "selective_retrieve": "selective retrieval's model, always retrieving",
        "srrag": "**SR-RAG**",
        "without_knn": "without the datastore",
        "without_verbalisation": "without verbalising in the labels",
        "without_stage2": "without stage 2's preferences",
    }
    columns = {name: SRRAG[name] for name in SRRAG if name not in ("head", "middle", "tail")}
    return list_methods({"": "srrag"}, columns, names, score="accuracy")


def list_srrag_two_indexes() -> Rows:
    """SR-RAG with three sources."""
    names = {
        "verbalise": "verbalise",
        "retrieve_Countries": "countries alone",
        "retrieve_Cities": "cities alone",
        "retrieve": "the likelier of the two",
        "srrag": "**SR-RAG**",
        "without_knn": "without the datastore",
    }
    columns = {name: SRRAG[name] for name in ("accuracy", "retrieval_rate")}
    return list_methods({"": "srrag_two_indexes"}, columns, names, score="accuracy")


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


def list_rag_memory() -> Rows:
    """Answers with the index of another revision of the facts."""
    (table,) = (t for title, t in read_run("rag")["tables"].items() if "revision" in title)
    head, *rows = table
    return [
        list(map(str, head)),
        *([str(c) if isinstance(c, str) else f"{c:.3f}" for c in r] for r in rows),
    ]


def list_prag_ablations() -> Rows:
    """What Parametric RAG's adapters are trained on and start from."""
    names = {
        "parametric": "rewrite and questions, random start",
        "without_rewrites": "without the rewrite",
        "without_questions": "without the questions",
        "warm": "from a start warmed up on other questions",
        "random": "random documents' parameters",
    }
    columns = {name: PRAG[name] for name in ("exact_match", "f1")}
    return list_methods({"": "prag_ablations"}, columns, names, score="exact_match")


# Speed.


def read_bench(name: str) -> list[dict[str, Any]]:
    """A benchmark's results."""
    return json.loads((RESULTS / f"{name}_cpu.json").read_text("utf-8"))["results"]


def format_seconds(value: float) -> str:
    """Seconds with three significant digits, in ms below a tenth."""
    return f"{1000 * value:.3g} ms" if value < 0.1 else f"{value:.3g} s"


def list_speed(bench: str, others: Mapping[str, str], *, skip: Sequence[str] = ()) -> Rows:
    """Our time, the others', the ratios of wall time and of CPU time, and our first call.

    Args:
        others: headings by the side's name in the results.
        skip: beginnings of results' names that are left out.
    """
    ratios = [f"{side}, ratio (CPU)" for side in others.values()]
    rows = [["", "ours", *others.values(), *ratios, "first call"]]
    for result in read_bench(bench):
        wall, cpu = result.get("wall_seconds", {}), result.get("cpu_seconds", {})
        if "ours" not in wall or result["name"].startswith(tuple(skip)):
            continue
        first = result["compile_seconds"]
        first = first["ours"] if isinstance(first, dict) else first
        rows.append(
            [
                result["name"],
                format_seconds(wall["ours"]),
                *(format_seconds(wall[side]) if side in wall else "" for side in others),
                *(
                    f"{wall[side] / wall['ours']:.2f} ({cpu[side] / cpu['ours']:.2f})"
                    if side in wall
                    else ""
                    for side in others
                ),
                format_seconds(first),
            ]
        )
    return drop_empty(rows)


def list_srrag_speed() -> Rows:
    """Seconds a question of the one pass, of separate calls, and of always retrieving."""
    rows = [["", "one pass", "other", "s a question", "s a question", "ratio"]]
    for result in read_bench("srrag"):
        wall, count = result.get("wall_seconds", {}), result.get("questions", 1)
        kind = "16 questions together" if "together" in result["name"] else "one at a time"
        if "ours" in wall:
            pairs = [("separate calls", "ours", "separate"), ("transformers", "ours", "pytorch")]
        else:
            waits = [name.removeprefix("srrag, ") for name in wall if name.startswith("srrag")]
            pairs = [
                (f"always retrieving, a search of {w}", f"srrag, {w}", f"always, {w}")
                for w in waits
            ]
        for other, ours, theirs in pairs:
            times = [wall[ours] / count, wall[theirs] / count]
            ratio = f"{wall[theirs] / wall[ours]:.2f}"
            rows.append([kind, "SR-RAG", other, *(f"{t:.3f}" for t in times), ratio])
    return rows


def list_index_speed() -> Rows:
    """ScaNN, the exact index and FAISS."""
    rows = [["", "ScaNN", "exact", "FAISS", "FAISS / ScaNN", "FAISS / exact"]]
    for result in read_bench("index"):
        wall = result["wall_seconds"]
        times = [format_seconds(wall[side]) for side in ("scann", "exact", "faiss")]
        ratios = [f"{wall['faiss'] / wall[side]:.2f}" for side in ("scann", "exact")]
        rows.append([result["name"], *times, *(["", ""] if "build" in result["name"] else ratios)])
        if "bytes_a_passage" in result:
            sizes = result["bytes_a_passage"]
            cells = [f"{sizes[side]:,.0f}" for side in ("scann", "exact", "faiss")]
            rows.append(["bytes a passage", *cells, "", ""])
    return rows


def list_faults() -> Rows:
    """The injected faults of all systems."""
    titles = {"srrag": "SR-RAG", "prag": "Parametric RAG", "self_retrieval": "Self-Retrieval"}
    rows = [["system", "fault", "injected", "survived", "seconds lost, median", "most"]]
    found = json.loads((RESULTS / "faults_cpu.json").read_text("utf-8"))
    for system, title in titles.items():
        for fault in found[system]["faults"]:
            lost = fault["lost"]
            rows.append(
                [
                    title,
                    fault["name"].replace("|", "\\|"),
                    str(fault["injected"]),
                    str(fault["survived"]),
                    f"{statistics.median(lost):.1f}",
                    f"{max(lost):.1f}",
                ]
            )
    return rows


def list_plan() -> Rows:
    """The planned programs of SR-RAG with Llama-2-7B on a v5e 8x8."""
    text = (RESULTS / "plans" / "llama2-7b-v5e-8x8.txt").read_text("utf-8")
    head, _, *lines = text.split("\n\n", 1)[1].splitlines()
    records = [
        dict(zip(re.split(r" {2,}", head), re.split(r" {2,}", line), strict=True)) for line in lines
    ]
    rows = [["program", "GiB a device", "TFLOP", "GB moved", "GB sent", "at least", "set by"]]
    for record in records:
        parts = ("arguments GiB", "temporary GiB", "resident GiB")
        needed = sum(float(record[part]) for part in parts)
        rest = (record[name] for name in rows[0][2:])
        rows.append([record["program"], f"{needed:.2f}", *rest])
    return rows


def list_scale(number: int) -> Rows:
    """A table of `scale.py`, for 21 million passages and 50,000 questions."""
    import scale

    head, rows = list(scale.list_tables(21_000_000, 50_000, 0.4))[number]
    return [head, *map(list, rows)]


RUNS = {
    "srrag": {ENCYCLOPEDIA: "srrag", "PopQA": "srrag_popqa"},
    "rag": {ENCYCLOPEDIA: "rag", "SQuAD": "rag_squad"},
    "self_retrieval": {ENCYCLOPEDIA: "self_retrieval", "SQuAD": "self_retrieval_squad"},
    "prag": {ENCYCLOPEDIA: "prag", "2WikiMultihopQA": "prag_2wiki"},
    "dpr": {ENCYCLOPEDIA: "dpr", "SciFact": "dpr_scifact"},
}
TABLES: dict[str, Callable[[], Rows]] = {
    "headlines": list_headlines,
    "srrag": lambda: list_methods(RUNS["srrag"], SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_methods": lambda: list_methods({"": "srrag"}, SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_stages": lambda: list_stages("srrag_main"),
    "srrag_ablations": list_srrag_ablations,
    "srrag_two_indexes": list_srrag_two_indexes,
    "rag": lambda: list_methods(RUNS["rag"], RAG, RAG_NAMES, score="exact_match"),
    "rag_memory": list_rag_memory,
    "self_retrieval": lambda: list_methods(
        RUNS["self_retrieval"], SELF_RETRIEVAL, SELF_RETRIEVAL_NAMES, score="hits@1"
    ),
    "prag": lambda: list_methods(RUNS["prag"], PRAG, PRAG_NAMES, score="exact_match"),
    "prag_ablations": list_prag_ablations,
    "dpr": lambda: list_methods(RUNS["dpr"], DPR, DPR_NAMES, score="answer@1"),
    "speed_models": lambda: list_speed("models", {"theirs": "PyTorch"}),
    "speed_rag": lambda: list_speed("rag", {"theirs": "transformers"}),
    "speed_trie": lambda: list_speed("trie", {"dicts": "transformers"}),
    "speed_lora": lambda: list_speed(
        "lora", {"theirs_lean": "PEFT in one batch", "theirs": "PEFT"}
    ),
    "speed_srrag": list_srrag_speed,
    "speed_dpo": lambda: list_speed("dpo", {"trl": "TRL, cached", "trl_uncached": "TRL"}),
    "speed_index": list_index_speed,
    "faults": list_faults,
    "plan": list_plan,
    "scale_kept": lambda: list_scale(0),
    "scale_computed": lambda: list_scale(1),
    "scale_host": lambda: list_scale(2),
    "scale_planned": lambda: list_scale(3),
}


def format_table(rows: Rows) -> str:
    """A table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(text: str, page: Path) -> str:
    """A page's text with its tables as the results have them."""
    docs = "docs" if page.parent == ROOT else "."

    def replace(found: re.Match[str]) -> str:
        table = format_table(TABLES[found[2]]()).replace("](PAGES/", f"]({docs}/")
        return f"{found[1]}{table.replace('](./', '](')}{found[3]}"

    return _BLOCK.sub(replace, text)


def main() -> int:
    """Rewrites or checks all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text("utf-8")
        filled = fill(text, page)
        if filled == text:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if not check:
            page.write_text(filled, encoding="utf-8")
    if check and stale:
        print(
            f"error: tables of {', '.join(stale)} differ from benchmarks/results; run "
            "python benchmarks/tables.py",
            file=sys.stderr,
        )
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
