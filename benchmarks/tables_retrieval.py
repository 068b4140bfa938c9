"""The tables of retrievers, from `results`; see `tables.py`."""

from collections.abc import Callable

from tables_systems import Rows, read_bench

from rag_jax.evaluation.pairs import tabulate_pairs

_METRICS = {"ndcg@10": "nDCG@10", "mrr": "MRR", "recall@100": "recall@100"}


def list_retrievers(dataset: str) -> Rows:
    """The grades, the time and the size of each retriever."""
    (result,) = read_bench(f"retrievers_{dataset}")
    rows = [["", *_METRICS.values(), "ms a question", "bytes a passage"]]
    for name, means in result["means"].items():
        milliseconds = 1000 * result["wall_seconds"][name] / result["timed"]
        numbers = [f"{means[metric]:.3f}" for metric in _METRICS]
        rows.append(
            [name, *numbers, f"{milliseconds:.3g}", f"{result['bytes_a_passage'][name]:,.0f}"]
        )
    return rows


def list_paired(dataset: str) -> Rows:
    """The differences of each retriever from BM25."""
    (result,) = read_bench(f"retrievers_{dataset}")
    rows = {
        name: {title: by_metric[metric] for metric, title in _METRICS.items()}
        for name, by_metric in result["paired"].items()
    }
    return tabulate_pairs({"reference": "BM25", "rows": rows})


TABLES: dict[str, Callable[[], Rows]] = {
    "retrievers": lambda: list_retrievers("scifact"),
    "retrievers_paired": lambda: list_paired("scifact"),
    "retrievers_squad": lambda: list_retrievers("squad"),
    "retrievers_squad_paired": lambda: list_paired("squad"),
    "retrievers_popqa": lambda: list_retrievers("popqa"),
    "retrievers_popqa_paired": lambda: list_paired("popqa"),
}
