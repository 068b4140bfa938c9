"""The tables of a report of Parametric RAG beside the main one."""

from collections.abc import Mapping, Sequence

import numpy as np

from rag_jax.evaluation.compare import Record
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json


def tabulate_types(predictions: Mapping[str, Sequence[Record]]) -> list[list[str | float]]:
    """F1 by type of question, a row for each method."""
    types = sorted({row["type"] for rows in predictions.values() for row in rows})
    table: list[list[str | float]] = [["method", *types]]
    for name, rows in predictions.items():
        scores = ([row["f1"] for row in rows if row["type"] == type_] for type_ in types)
        table.append([name, *(float(np.mean(members)) for members in scores)])
    return table


def tabulate_coverage(predictions: Mapping[str, Sequence[Record]]) -> list[list[str | float]]:
    """Exact match of the questions whose answer the adapters were trained to say, and of the rest.

    An answer that is not among a document's augmentations can only come from its passage: how much
    of a document's own content an adapter holds is the question of arXiv 2510.12668. Rows of other
    searches have other documents.
    """
    predictions = {name: rows for name, rows in predictions.items() if "covered" in rows[0]}
    rows = list(predictions.values())
    parts = {"trained to say": True, "others": False}
    counts = {n: sum(row["covered"] is value for row in rows[0]) for n, value in parts.items()}
    table: list[list[str | float]] = [["method", *(f"{n} (n={c})" for n, c in counts.items())]]
    for name, answered in predictions.items():
        scores = [
            [row["exact_match"] for row in answered if row["covered"] is value]
            for value in parts.values()
        ]
        table.append([name, *(float(np.mean(own)) if own else "-" for own in scores)])
    return table


def tabulate_adapters(context: StageContext) -> list[list[str | float]]:
    """What the documents' adapters of a finished run cost to train and to use."""
    made = read_json(context.path("encode", "groups.json"))
    used = read_json(context.path("evaluate", "adapters.json"))
    return [
        ["", "value"],
        ["documents encoded", str(used["documents"])],
        ["trained together", str(made["size"])],
        ["tokens trained on", str(made["tokens"])],
        ["share of padding", made["padding"]],
        ["programs compiled", str(made["programs"])],
        ["bytes a document", f"{used['bytes_per_document']:.0f}"],
        ["milliseconds to load a document", used["load_ms_per_document"]],
    ]
