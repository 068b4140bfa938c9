"""Quality of routing: accuracy and calibration of the choice of a source, and its frontier."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.evaluation.answers import calibrate, compute_accuracy, popularity_thirds
from rag_jax.evaluation.compare import split_by_dataset
from rag_jax.evaluation.figures import Bars, Chart, Figure
from rag_jax.evaluation.frontier import MEASURES, Router, compare_routers, trace_frontier


class Source(Protocol):
    """A knowledge source, of kind "verbalise" for the model itself or "search" for an index."""

    name: str
    kind: str


# Methods that choose, in the order of the report, and the one whose trained weights each has.
ROUTED = {
    "srrag": "srrag",
    "srrag_grown": "srrag",
    "without_knn": "srrag",
    "without_verbalisation": "without_verbalisation",
    "without_stage2": "without_stage2",
    "selective": "selective",
    "selective_fixed": "selective",
}
_THIRDS = ("head", "middle", "tail")
Rows = Sequence[Mapping[str, Any]]


def analyse(predictions: Mapping[str, Rows], sources: Sequence[Source]) -> dict[str, Any]:
    """The analysis of every method that chooses its source; see `analyse_choices`.

    `predictions` are each method's records, with the sources' "scores" and "correct_by_source", the
    searched sources' "mass" in the scores, and the score "search" that a search is decided by.
    """
    return {
        name: analyse_choices(predictions[name], sources) for name in ROUTED if name in predictions
    }


def read_router(rows: Rows, sources: Sequence[Source]) -> Router:
    """A method's records as the questions of a router."""
    external = np.asarray([source.kind == "search" for source in sources])
    scores = np.asarray([row["scores"] for row in rows], float)[:, external]
    correct = np.asarray([row["correct_by_source"] for row in rows], float)
    internal, searched = correct[:, ~external][:, 0], correct[:, external]
    return Router(
        scores=np.asarray([row["search"] for row in rows], float),
        internal=internal,
        # The answer of each question's strongest searched source.
        external=np.take_along_axis(searched, scores.argmax(axis=1)[:, None], axis=1)[:, 0],
        better=searched.max(axis=1) > internal,
        searched=np.asarray([row["retrieved"] for row in rows], float),
    )


def analyse_choices(rows: Rows, sources: Sequence[Source]) -> dict[str, Any]:
    """The quality of one method's choices (paper, section 4.1).

    Verbalising is right where its answer is no worse than that of any searched source. Elsewhere a
    searched source is right if its answer is the best. The AUROC is that of the score "search" as a
    predictor of whether retrieval is better; None where all questions agree. The calibration is
    that of the searched sources' share of all scores.
    """
    external = np.asarray([source.kind == "search" for source in sources])
    router = read_router(rows, sources)
    own = np.asarray([row["scores"] for row in rows], float)[:, ~external][:, 0]
    mass, better = np.asarray([row["mass"] for row in rows], float), router.better
    right = find_right(rows, sources)
    accuracy, interval = compute_accuracy(right.astype(float).tolist())
    varied = better.any() and not better.all()
    total = mass + own
    # Scores that vanish say nothing of either side.
    share = np.where(total > 0, mass / np.where(total > 0, total, 1), 0.5)
    from sklearn.metrics import (  # imported here: slow, and asking needs none
        brier_score_loss,
        roc_auc_score,
    )

    brier = float(brier_score_loss(better, share, labels=[False, True]))
    return {
        "retrieval_better": float(better.mean()),
        "choice_accuracy": accuracy,
        "choice_ci95": interval,
        "auroc": float(roc_auc_score(better, router.scores)) if varied else None,
        "calibration": {"brier": brier, **calibrate(share, better)},
        "frontier": trace_frontier(router.scores, router.internal, router.external),
        "by_popularity": _split_by_popularity(rows),
    }


def find_right(rows: Rows, sources: Sequence[Source]) -> Bool[np.ndarray, "N"]:
    """Whether the chosen source of each question is right, as `analyse_choices` says."""
    external = np.asarray([source.kind == "search" for source in sources])
    correct = np.asarray([row["correct_by_source"] for row in rows], float)
    chosen = np.asarray([row["number"] for row in rows])
    best = correct[:, external].max(axis=1)
    is_best = np.take_along_axis(correct, chosen[:, None], axis=1)[:, 0] == best
    better = best > correct[:, ~external][:, 0]
    return np.where(better, external[chosen] & is_best, ~external[chosen])


def list_trivial(rows: Rows, sources: Sequence[Source]) -> dict[str, list[dict[str, Any]]]:
    """The records of routers that always take one source, from any method on the same weights.

    Their score of a search is the same for all questions.
    """

    def take(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        retrieved = float(sources[number].kind == "search")
        one = {"number": number, "retrieved": retrieved, "search": 0.0}
        return {**row, **one, "correct": row["correct_by_source"][number]}

    scores = np.asarray([row["scores"] for row in rows], float)
    return {
        name: [take(row, number) for row, number in zip(rows, numbers.tolist(), strict=True)]
        for name, numbers in choose_always(sources, scores).items()
    }


def choose_always(
    sources: Sequence[Source], scores: Float[np.ndarray, "N S"]
) -> dict[str, Int[np.ndarray, "N"]]:
    """The source of every question by the routers that always take one.

    `verbalise` takes the model's own knowledge and `retrieve` the searched source with the largest
    score; with several of them there is also one router for each.
    """
    kinds = [source.kind for source in sources]
    searched = [number for number, kind in enumerate(kinds) if kind == "search"]
    always = {"verbalise": np.full(len(scores), kinds.index("verbalise"))}
    always["retrieve"] = np.asarray(searched)[scores[:, searched].argmax(axis=1)]
    for number in searched if len(searched) > 1 else ():
        always[f"retrieve_{sources[number].name}"] = np.full(len(scores), number)
    return always


def list_routers(predictions: Mapping[str, Rows], sources: Sequence[Source]) -> dict[str, Rows]:
    """The records of every method that chooses and, after them, of the trivial routers.

    There are trivial routers for each model that was trained: the others' weights answer otherwise.
    """
    routers = {name: predictions[name] for name in ROUTED if name in predictions}
    for weights in dict.fromkeys(ROUTED[name] for name in routers):
        of = "" if weights == "srrag" else f"{weights}, "
        for name, rows in list_trivial(predictions[weights], sources).items():
            routers[f"{of}always {name}"] = rows
    return routers


def _split_by_popularity(rows: Rows) -> dict[str, Any]:
    thirds = np.asarray(popularity_thirds([row["popularity"] for row in rows]))
    fields = {"accuracy": "correct", "retrieval_rate": "retrieved"}
    columns = {name: np.asarray([row[field] for row in rows]) for name, field in fields.items()}
    split = {}
    for third in _THIRDS:
        members: Bool[np.ndarray, N] = thirds == third
        if members.any():
            means = {name: float(column[members].mean()) for name, column in columns.items()}
            split[third] = {"n": int(members.sum()), **means}
    return split


def compare(predictions: Mapping[str, Rows], sources: Sequence[Source]) -> dict[str, Any]:
    """Every router against SR-RAG; see `compare_routers`."""
    routers = list_routers(predictions, sources)
    read = {name: read_router(rows, sources) for name, rows in routers.items()}
    return compare_routers(read, "srrag")


def tabulate_routers(
    compared: Mapping[str, Any], routers: Mapping[str, Rows], taus: Mapping[str, float]
) -> list[list[str | float]]:
    """The result of `compare` as a table: each router as it is, and at the reference's rate.

    Args:
        routers: the records of each router.
        taus: thresholds, of the routers that have one.
    """
    measures = ("accuracy at that rate", "AUROC", "area")
    head = ["router", "tau", "retrieval rate", "accuracy"]
    table: list[list[str | float]] = [
        [*head, *(cell for name in measures for cell in (name, "difference"))]
    ]
    for name, row in compared["rows"].items():
        tau = f"{taus[name]:.3g}" if name in taus else "-"
        means = [float(np.mean([r[field] for r in routers[name]])) for field in _OWN]
        cells = [cell for key in MEASURES for cell in _format_measure(row[key])]
        table.append([name, tau, *means, *cells])
    return table


_OWN = ("retrieved", "correct")


def _format_measure(measure: Mapping[str, Any]) -> tuple[str, str]:
    value = "-" if measure["value"] is None else f"{measure['value']:.3f}"
    if measure.get("difference") is None:
        return value, "-"
    low, high = measure["ci95"]
    return value, f"{measure['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def list_tables(
    routing: Mapping[str, Any],
    compared: Mapping[str, Any],
    statistics: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Rows],
    sources: Sequence[Source],
    taus: Mapping[str, float],
) -> dict[str, list[list[str | float]]]:
    """The report's tables of the choice, of the routers' comparison and of the sources' shares.

    The choice has a row for each method that chooses and, to compare with, for each trivial router,
    which takes the same source for every question and has no score of its own. Of a mixture there
    is a table of the choice within each dataset: to tell the datasets apart is not to tell which of
    a dataset's questions need a search.

    `routing` is from `analyse` and `compared` from `compare`. `statistics` has "labels", from
    `count_labels`, and the shares of the sources in the "datastore" and, if it was grown, in its
    further "entries".
    """
    choice: list[list[str | float]] = [
        ["method", "right source", "AUROC", "area", "of an oracle", "at random", "ECE", "Brier"]
    ]
    routers = list_routers(predictions, sources)
    for name, rows in routers.items():
        if name not in routing:
            choice.append([name, float(find_right(rows, sources).mean()), *["-"] * 6])
            continue
        errors = [routing[name]["calibration"][error] for error in ("ece", "brier")]
        choice.append([name, *_list_qualities(routing[name]), *errors])
    rate = f"{compared['retrieval_rate']:.3f}"
    return {
        "Choice of the source; area below accuracy against retrieval rate": choice,
        f"Routers at the retrieval rate of {compared['reference']}, {rate}; differences to it with "
        "95 % intervals by the paired bootstrap": tabulate_routers(compared, routers, taus),
        **_tabulate_datasets(predictions, sources),
        **_tabulate_shares(statistics, predictions, sources),
    }


def _list_qualities(quality: Mapping[str, Any]) -> list[str | float]:
    auroc = "-" if quality["auroc"] is None else quality["auroc"]
    areas = [quality["frontier"][area] for area in ("area", "area_oracle", "area_random")]
    return [quality["choice_accuracy"], auroc, *areas]


def _tabulate_datasets(
    predictions: Mapping[str, Rows], sources: Sequence[Source]
) -> dict[str, list[list[str | float]]]:
    """The choice within each dataset of a mixture; other questions name none."""
    head = ("dataset", "method", "retrieval better", "retrieval rate", "right source", "AUROC")
    table: list[list[str | float]] = [[*head, "area", "of an oracle", "at random"]]
    for dataset, asked in split_by_dataset(predictions).items():
        for name, quality in analyse(asked, sources).items():
            rate = float(np.mean([row["retrieved"] for row in asked[name]]))
            means = [quality["retrieval_better"], rate, *_list_qualities(quality)]
            table.append([dataset, name, *means])
    return {"Choice of the source within each dataset": table} if len(table) > 1 else {}


def _tabulate_shares(
    statistics: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Rows],
    sources: Sequence[Source],
) -> dict[str, list[list[str | float]]]:
    chosen, labels = [row["number"] for row in predictions["srrag"]], statistics["labels"]
    filled = [name for name in ("datastore", "entries") if name in statistics]
    head = ("source", "labels", "labels without verbalising", *filled, "chosen")
    share: list[list[str | float]] = [[*head, "cut off", "found nothing"]]
    for number, source in enumerate(sources):
        name = source.name
        shares = [labels["share"], labels["share_closed_book"]]
        shares += [statistics[stage]["share"] for stage in filled]
        values = [share_of[name] for share_of in shares]
        if source.kind == "verbalise":
            counts = [str(sum(row["cut_off"] for row in predictions["verbalise"])), "-"]
        else:
            always = predictions.get(f"retrieve_{name}", predictions["retrieve"])
            counts = ["-", str(sum(row["fell_back"] for row in always))]
        share.append([name, *values, chosen.count(number) / len(chosen), *counts])
    flipped = f"{labels['flipped_by_verbalising']:.3f}"
    return {f"Shares of the sources; verbalising changes {flipped} of the labels": share}


def make_figures(
    routing: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, Figure]:
    """The report's figures by title, from `analyse` and from every method's numbers."""
    lines = {
        name: [(p["retrieval_rate"], p["accuracy"]) for p in quality["frontier"]["points"]]
        for name, quality in routing.items()
    }
    curves = {
        name: [(b["probability"], b["share"]) for b in quality["calibration"]["bins"]]
        for name, quality in routing.items()
    }
    points = {name: (m["retrieval_rate"], m["accuracy"]) for name, m in methods.items()}
    ends = next(iter(lines.values()))
    random = {"sources at random": [ends[0], ends[-1]]}
    frontier = Chart("retrieval rate", "accuracy", lines, points, random)
    x = "share of the searched sources in all scores"
    calibration = Chart(x, "retrieval is better", curves, guides={"calibrated": [(0, 0), (1, 1)]})
    figures: dict[str, Figure] = {
        "Accuracy against retrieval rate, over all thresholds": frontier,
        "Calibration": calibration,
    }
    thirds = {name: [m[t] for t in _THIRDS] for name, m in methods.items() if "head" in m}
    if thirds:
        bars = Bars(y="accuracy", groups=_THIRDS, bars=thirds)
        figures["Accuracy by the subject's popularity"] = bars
    return figures
