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
PRAG = {
    "exact_match": "exact match",
    "f1": "F1",
    "match": "holds an answer",
    "prompt_tokens": "prompt tokens",
}
PRAG_NAMES = {
    "direct": "direct",
    "in_context": "in the context",
    "in_context_augmented": "in the context, with the augmentations",
    "parametric": "**in the parameters**",
    "both": "**both**",
    "random": "random documents' parameters",
}
# Beside the rows of any run.
PRAG_TRANSLATED = PRAG_NAMES | {
    "translated": "**made adapters**",
    "translated_both": "**made adapters, and the context**",
    "translated_random": "adapters made of random documents",
    "translated_random_both": "adapters made of random documents, and the context",
}
_MADE = ("translated", "translated_random", "translated_both", "translated_random_both")
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


def list_routers() -> Rows:
    """SR-RAG's routers at one retrieval rate and by area."""
    (table,) = (t for title, t in read_run("srrag")["tables"].items() if "rate of srrag" in title)
    return [[c if isinstance(c, str) else f"{c:.3f}" for c in row] for row in table]


def list_seeds() -> Rows:
    """SR-RAG's rows by the seed that the weights, the draws and the order of training come from."""
    names = ("verbalise", "retrieve", "srrag", "without_knn")
    rows = [["seed", *(SRRAG_METHODS[name] for name in names), "retrieval rate", "AUROC"]]
    rows[0] += ["retrieve - SR-RAG", "without the datastore - SR-RAG"]
    for seed, name in enumerate(("srrag", "srrag_seed_1", "srrag_seed_2")):
        run = read_run(name)
        (choice,) = (t for title, t in run["tables"].items() if title.startswith("Choice"))
        measures = dict(zip(*choice[:2], strict=True))
        cells = [format_cell("accuracy", run["methods"][n], "accuracy") for n in names]
        cells += [f"{run['methods']['srrag']['retrieval_rate']:.3f}", f"{measures['AUROC']:.3f}"]
        pairs = (run["paired"]["rows"][n]["accuracy"] for n in ("retrieve", "without_knn"))
        rows.append([str(seed), *cells, *map(format_pair, pairs)])
    return rows


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


def list_rules() -> Rows:
    """What decides between two indexes and the model itself, with the datastore and without."""
    rows = [["datastore", "rule", "accuracy", "retrieval rate", "asked for PopQA's questions"]]
    rows[0] += ["for SQuAD's", "against one index", "against mass"]
    for router, rules in read_bench("sources").items():
        for name, found in rules.items():
            cells = [format_cell("accuracy", found, "accuracy"), f"{found['retrieval_rate']:.3f}"]
            cells += [" / ".join(map(str, asked.values())) for asked in found["asked"].values()]
            pairs = map(found["against"].get, ("always one index of all", "mass"))
            cells += [format_pair(pair) if pair else "" for pair in pairs]
            rows.append(["yes" if router == "srrag" else "no", name, *cells])
    return rows


def list_rag_memory() -> Rows:
    """Answers with the index of another revision of the facts."""
    (table,) = (t for title, t in read_run("rag")["tables"].items() if "revision" in title)
    head, *rows = table
    return [
        list(map(str, head)),
        *([str(c) if isinstance(c, str) else f"{c:.3f}" for c in r] for r in rows),
    ]


def list_prag_coverage() -> Rows:
    """Exact match by whether the gold answer was trained into the documents' adapters."""
    rows = [["data", "questions", "method", "trained to say", "others"]]
    for data in (ENCYCLOPEDIA, "SQuAD", HALF):
        tables = read_run(RUNS["prag"][data])["tables"]
        (table,) = (t for title, t in tables.items() if "trained to say" in title)
        (_, *parts), *found = table
        counts = " / ".join(part[part.index("=") + 1 : -1] for part in parts)
        for name, *cells in found:
            rows.append([data, counts, PRAG_NAMES[name], *(f"{cell:.3f}" for cell in cells)])
    return rows


def list_prag_ablations() -> Rows:
    """What Parametric RAG's adapters are trained on and start from."""
    names = {
        "parametric": "rewrite and questions, random start",
        "without_rewrites": "without the rewrite",
        "without_questions": "without the questions",
        "warm_start": "from a start warmed up on other questions",
        "random": "random documents' parameters",
    }
    columns = {name: PRAG[name] for name in ("exact_match", "f1")}
    return list_methods({"": "prag_ablations"}, columns, names, score="exact_match")


def list_compared(run: str) -> Rows:
    """The rows of a comparison of systems, with where their knowledge comes from."""
    report = read_run(run)
    kinds = {name: texts for name, *texts in report["tables"]["what the rows are"][1:]}
    (_, _, *head), *rows = tabulate_methods(report["methods"], COLUMNS)
    return [
        ["row", "knowledge", "model", *head],
        *([name, *kinds[name], *numbers] for name, _, *numbers in rows),
    ]


def list_first_weights() -> Rows:
    """What a translator's first weights leave of the documents, on some that it never saw."""
    rows = [["first weights of `W_down`", "its directions", "active units"]]
    rows[0] += ["directions of the adapters", "loss: no adapter", "own", "another's"]
    rows[0].append("another's - own")
    for found in read_bench("translator"):
        losses, apart = found["losses"], found["other_minus_own"]
        low, high = apart["ci95"]
        shape = [f"{found['init']:g}", f"{found['directions_of_first_weights']:.1f}"]
        shape += [f"{found['units_ever_active']:.0%}", f"{found['directions_of_adapters']:.1f}"]
        tried = [f"{losses[name]:.2f}" for name in ("none", "own", "other")]
        rows.append([*shape, *tried, f"{apart['difference']:.3f} ({low:.3f} to {high:.3f})"])
    return rows


def list_made() -> Rows:
    """What a finished translator's adapters hold of documents that it saw and did not see."""
    found = read_bench("translator_squad")[0]
    tried = {
        "not seen, made adapters": found,
        "trained on, made adapters": found["seen"],
        "trained on, their trained adapters": found["seen, trained adapters"],
    }
    rows = [["documents", "loss: no adapter", "own", "another's", "another's - own"]]
    for name, own in tried.items():
        losses = [f"{own['losses'][kind]:.2f}" for kind in ("none", "own", "other")]
        rows.append([name, *losses, format_pair(own["other_minus_own"])])
    return rows


def list_adapter_costs() -> Rows:
    """What an adapter takes, made by the translator and trained on its document."""
    (found,) = read_bench("adapters")
    count, sizes = found["documents"], {"ours": 0, "trained": found["adapter_bytes"]}
    tokens = {"ours": found["read_tokens"], "trained": found["trained_tokens"]}
    rows = [["a document's adapter", "seconds", "CPU seconds", "tokens", "kept", "first call"]]
    for side, name in {"ours": "**made**", "trained": "trained"}.items():
        seconds = [f"{found[kind][side] / count:.2f}" for kind in ("wall_seconds", "cpu_seconds")]
        kept = f"{sizes[side] / 1e6:.1f} MB"
        first = f"{found['compile_seconds'][side]:.0f} s"
        rows.append([name, *seconds, f"{tokens[side] / count:.0f}", kept, first])
    return rows


def list_repeated() -> Rows:
    """What translators hold of documents in as many steps, by the number of documents."""
    rows = [["documents", "each is seen", "not seen: own", "another's", "another's - own"]]
    rows[0] += ["trained on: own", "another's", "another's - own"]
    finished, *others = read_bench("translator_squad")
    for found in sorted([*others, finished], key=lambda found: found["trained_on"]):
        times = found.get("steps", found["trained_on"]) // found["trained_on"]
        row = [str(found["trained_on"]), "once" if times == 1 else f"{times} times"]
        for own in (found, found["seen"]):
            row += [f"{own['losses'][kind]:.2f}" for kind in ("own", "other")]
            row.append(format_pair(own["other_minus_own"]))
        rows.append(row)
    return rows


def list_translators() -> Rows:
    """What made adapters reach, by the number of documents that the translator is trained on."""
    rows = [["data", "documents", *(PRAG_TRANSLATED[name] for name in _MADE)]]
    rows[0].append("own - random documents'")
    runs = {
        "prag_translator_100": (ENCYCLOPEDIA, 100),
        "prag_translator_300": (ENCYCLOPEDIA, 300),
        "prag_translator_squad": ("SQuAD", 999),
    }
    for name, (data, documents) in runs.items():
        run = read_run(name)
        pair = run["paired"]["rows"]["translated_random"]["exact_match"]
        cells = [format_cell("exact_match", run["methods"][n], "exact_match") for n in _MADE]
        rows.append([data, str(documents), *cells, format_pair(pair, sign=-1)])
    return rows


CONFLICT = {
    "in_context": "none",
    "both": "the document's",
    "random_both": "another document's",
    "translated_both": "made of the document",
    "translated_random_both": "made of another document",
}


def list_conflict() -> Rows:
    """Whom the model believes: an adapter, or another revision of its document in the prompt."""
    rows = [["adapter of the old facts", "answers by the adapter", "by the prompt"]]
    rows[0].append("by the prompt, against no adapter")
    for way, found in read_bench("conflict")["conflict"].items():
        old, new = found["adapter's answer"], found["prompt's answer"]
        cells = [CONFLICT[way], f"{old['share']:.3f}", f"{new['share']:.3f}", ""]
        if pair := new.get("against_in_context"):
            cells[-1] = format_pair(pair)
        rows.append(cells)
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "first_weights": list_first_weights,
    "srrag": lambda: list_methods(RUNS["srrag"], SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_methods": lambda: list_methods({"": "srrag"}, SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_pairs": lambda: list_pairs("srrag", "accuracy"),
    "srrag_routers": list_routers,
    "srrag_rules": list_rules,
    "srrag_seeds": list_seeds,
    "srrag_stages": lambda: list_stages("srrag"),
    "rag": lambda: list_methods(RUNS["rag"], RAG, RAG_NAMES, score="exact_match"),
    "rag_pairs": lambda: list_pairs("rag", "exact_match"),
    "rag_hits": list_hits,
    "rag_memory": list_rag_memory,
    "self_retrieval": lambda: list_methods(
        RUNS["self_retrieval"], SELF_RETRIEVAL, SELF_RETRIEVAL_NAMES, score="hits@1"
    ),
    "self_retrieval_pairs": lambda: list_pairs("self_retrieval", "hits@1", "exact_match"),
    "prag_pairs": lambda: list_pairs("prag", "exact_match", "match"),
    "prag": lambda: list_methods(RUNS["prag"], PRAG, PRAG_NAMES, score="exact_match"),
    "prag_translated": lambda: list_methods(
        {"": "prag_translator_300"}, PRAG, PRAG_TRANSLATED, score="exact_match"
    ),
    "prag_translated_pairs": lambda: list_pairs("prag_translator_300", "exact_match", "match"),
    "prag_translated_squad": lambda: list_methods(
        {"": "prag_translator_squad"}, PRAG, PRAG_TRANSLATED, score="exact_match"
    ),
    "prag_translated_squad_pairs": lambda: list_pairs(
        "prag_translator_squad", "exact_match", "match"
    ),
    "prag_conflict": list_conflict,
    "prag_translators": list_translators,
    "prag_made": list_made,
    "prag_repeated": list_repeated,
    "prag_adapter_costs": list_adapter_costs,
    "prag_coverage": list_prag_coverage,
    "prag_ablations": list_prag_ablations,
    "compare": lambda: list_compared("compare"),
    "compare_factbook": lambda: list_compared("compare_factbook"),
    "compare_popqa": lambda: list_compared("compare_popqa"),
    "dpr": lambda: list_methods(RUNS["dpr"], DPR, DPR_NAMES, score="answer@1"),
}
