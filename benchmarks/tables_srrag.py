"""The tables of what Self-Routing RAG reaches, from `results/systems`; see `tables.py`."""

from collections.abc import Callable

from tables_systems import (
    RUNS,
    Rows,
    find_table,
    format_cell,
    format_pair,
    list_methods,
    list_pairs,
    list_stages,
    list_table,
    read_bench,
    read_run,
)

from rag_jax.evaluation.tables import tabulate_methods
from rag_jax.systems.srrag.evaluate import COLUMNS

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
# By what a mixture's report calls them.
DATASETS = {"popqa": "PopQA", "arc_challenge": "ARC-Challenge"}
GROWN = SRRAG_METHODS | {"srrag_grown": "SR-RAG, entries of the dataset added"}


def list_mixture(run: str) -> Rows:
    """A mixture's methods, over all of its questions and over each dataset's."""
    found, shown = read_run(run), ("n", "accuracy", "retrieval rate", "prompt tokens")
    tables = {"both": tabulate_methods(found["methods"], COLUMNS)}
    tables |= {
        DATASETS[title.partition(":")[0]]: table
        for title, table in found["tables"].items()
        if title.endswith(": methods")
    }
    rows = [["data", "method", "questions", *shown[1:]]]
    for data, (head, *methods) in tables.items():
        numbers = {method[0]: dict(zip(head, method, strict=True)) for method in methods}
        for name, called in SRRAG_METHODS.items():
            rows.append([data, called, *(numbers[name][column] for column in shown)])
    return rows


def list_seeds() -> Rows:
    """SR-RAG's rows by the seed that the weights, the draws and the order of training come from."""
    names = ("verbalise", "retrieve", "srrag", "without_knn")
    rows = [["seed", *(SRRAG_METHODS[name] for name in names), "retrieval rate", "AUROC"]]
    rows[0] += ["retrieve - SR-RAG", "without the datastore - SR-RAG"]
    for seed, name in enumerate(("srrag", "srrag_seed_1", "srrag_seed_2")):
        run = read_run(name)
        measures = dict(zip(*find_table(name, "Choice of the source;")[:2], strict=True))
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
    "srrag_mixture": lambda: list_mixture("srrag_mixture"),
    "srrag_mixture_routers": lambda: list_table("srrag_mixture", "rate of srrag"),
    "srrag_mixture_choice": lambda: list_table("srrag_mixture", "within each dataset"),
    "srrag_shift": lambda: list_methods({"": "srrag_shift"}, SRRAG, GROWN, score="accuracy"),
    "srrag_routers": lambda: list_table("srrag", "rate of srrag"),
    "srrag_rules": list_rules,
    "srrag_seeds": list_seeds,
    "srrag_stages": lambda: list_stages("srrag"),
}
