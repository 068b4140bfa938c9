"""The tables of what Self-Routing RAG reaches, from `results/systems`; see `tables.py`."""

from collections.abc import Callable

from tables_systems import (
    RUNS,
    Rows,
    format_cell,
    format_pair,
    list_methods,
    list_pairs,
    list_stages,
    read_bench,
    read_run,
)

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
MIXED = {"all": "srrag_mixture", "trivia": "srrag_shift"}
# Of a mixture, whose report has a table of the methods for each dataset.
MIXTURE_METHODS = SRRAG_METHODS | {
    "srrag_grown": "SR-RAG, entries of the dataset added",
    "raw_verbalise": "as loaded, verbalise",
    "raw_retrieve": "as loaded, retrieve",
    "selective": "selective retrieval",
    "selective_fixed": "selective retrieval at 0.2",
    "selective_retrieve": "its model, retrieve",
    "without_verbalisation": "without verbalising in the labels",
    "without_stage2": "without stage 2's preferences",
}


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


TABLES: dict[str, Callable[[], Rows]] = {
    "srrag": lambda: list_methods(RUNS["srrag"], SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_methods": lambda: list_methods({"": "srrag"}, SRRAG, SRRAG_METHODS, score="accuracy"),
    "srrag_pairs": lambda: list_pairs("srrag", "accuracy"),
    "srrag_routers": list_routers,
    "srrag_rules": list_rules,
    "srrag_seeds": list_seeds,
    "srrag_stages": lambda: list_stages("srrag"),
}
