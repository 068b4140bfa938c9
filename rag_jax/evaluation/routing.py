"""Quality of routing: accuracy and calibration of the choice of a source, and its frontier."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import auc, brier_score_loss, roc_auc_score

from rag_jax.evaluation.answers import calibrate, compute_accuracy, popularity_thirds
from rag_jax.evaluation.figures import Bars, Chart


class Source(Protocol):
    """A knowledge source, of kind "verbalise" for the model itself or "search" for an index."""

    name: str
    kind: str


# Methods that choose, in the order of the report.
ROUTED = ("srrag", "without_knn", "without_verbalisation", "without_stage2", "selective")
_THIRDS = ("head", "middle", "tail")


def analyse(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]], sources: Sequence[Source]
) -> dict[str, Any]:
    """The analysis of every method that chooses its source; see `analyse_choices`.

    `predictions` are each method's records, with the sources' "scores" and "correct_by_source".
    """
    return {
        name: analyse_choices(predictions[name], sources) for name in ROUTED if name in predictions
    }


def analyse_choices(rows: Sequence[Mapping[str, Any]], sources: Sequence[Source]) -> dict[str, Any]:
    """The quality of one method's choices (paper, section 4.1).

    Verbalising is right where its answer is no worse than that of any searched source. Elsewhere a
    searched source is right if its answer is the best. The AUROC is that of the largest score of a
    searched source as a predictor of whether retrieval is better; None where all questions agree.
    The calibration is that of the searched sources' share of all scores.
    """
    external = np.asarray([source.kind == "search" for source in sources])
    scores = np.asarray([row["scores"] for row in rows], float)
    correct = np.asarray([row["correct_by_source"] for row in rows], float)
    searched, internal = scores[:, external], correct[:, ~external][:, 0]
    strongest, better = searched.max(axis=1), correct[:, external].max(axis=1) > internal
    accuracy, interval = compute_accuracy(find_right(rows, sources).astype(float).tolist())
    varied = better.any() and not better.all()
    total = scores.sum(axis=1)
    # Scores that vanish say nothing of either side.
    share = np.where(total > 0, searched.sum(axis=1) / np.where(total > 0, total, 1), 0.5)
    # The answer of each question's strongest searched source.
    found = np.take_along_axis(correct[:, external], searched.argmax(axis=1)[:, None], 1)[:, 0]
    brier = float(brier_score_loss(better, share, labels=[False, True]))
    return {
        "retrieval_better": float(better.mean()),
        "choice_accuracy": accuracy,
        "choice_ci95": interval,
        "auroc": float(roc_auc_score(better, strongest)) if varied else None,
        "calibration": {"brier": brier, **calibrate(share, better)},
        "frontier": trace_frontier(strongest, internal, found),
        "by_popularity": _split_by_popularity(rows),
    }


def find_right(
    rows: Sequence[Mapping[str, Any]], sources: Sequence[Source]
) -> Bool[np.ndarray, "N"]:
    """Whether the chosen source of each question is right, as `analyse_choices` says."""
    external = np.asarray([source.kind == "search" for source in sources])
    correct = np.asarray([row["correct_by_source"] for row in rows], float)
    chosen = np.asarray([row["number"] for row in rows])
    best = correct[:, external].max(axis=1)
    is_best = np.take_along_axis(correct, chosen[:, None], axis=1)[:, 0] == best
    better = best > correct[:, ~external][:, 0]
    return np.where(better, external[chosen] & is_best, ~external[chosen])


def trace_frontier(
    scores: Float[np.ndarray, "N"],
    internal: Float[np.ndarray, "N"],
    external: Float[np.ndarray, "N"],
) -> dict[str, Any]:
    """Accuracy against retrieval rate over all thresholds.

    Args:
        scores: questions with a score above the threshold are searched.
        internal: whether the model's own knowledge answers a question, 1 or 0.
        external: whether the searched knowledge does.

    Returns:
        `points` from never to always searching, each with its threshold `tau` (None: any below all
        scores); the `area` below the points; `area_random`, the area of a random choice; and
        `area_oracle`, that of searching first where search helps and last where it harms.
    """
    points = []
    for tau in [*np.unique(scores)[::-1].tolist(), None]:
        searched = np.ones(len(scores), bool) if tau is None else scores > tau
        accuracy = float(np.where(searched, external, internal).mean())
        points.append({"tau": tau, "retrieval_rate": float(searched.mean()), "accuracy": accuracy})
    order = np.argsort(internal - external, kind="stable")
    gains = np.cumsum((external - internal)[order]) / len(scores)
    rates = np.arange(len(scores) + 1) / len(scores)
    area = auc([p["retrieval_rate"] for p in points], [p["accuracy"] for p in points])
    return {
        "area": float(area),
        "area_random": float((internal.mean() + external.mean()) / 2),
        "area_oracle": float(auc(rates, internal.mean() + np.concatenate([[0], gains]))),
        "points": points,
    }


def _split_by_popularity(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def list_tables(
    routing: Mapping[str, Any],
    labels: Mapping[str, Any],
    datastore: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    sources: Sequence[Source],
) -> dict[str, list[list[str | float]]]:
    """The report's tables of the choice and of the sources' shares.

    The choice has a row for each method that chooses and, to compare with, for each trivial router,
    which takes the same source for every question and has no score of its own.

    `routing` is from `analyse`, `labels` from `count_labels`, and `datastore` has the shares of the
    sources in the datastore.
    """
    choice: list[list[str | float]] = [
        ["method", "right source", "AUROC", "area", "of an oracle", "at random", "ECE", "Brier"]
    ]
    for name, quality in routing.items():
        auroc = "-" if quality["auroc"] is None else quality["auroc"]
        areas = [quality["frontier"][area] for area in ("area", "area_oracle", "area_random")]
        errors = [quality["calibration"][error] for error in ("ece", "brier")]
        choice.append([name, quality["choice_accuracy"], auroc, *areas, *errors])
    searched = [f"retrieve_{source.name}" for source in sources if source.kind == "search"]
    for name in ("verbalise", "retrieve", *searched):
        if name in predictions:
            right = float(find_right(predictions[name], sources).mean())
            choice.append([f"always {name}", right, *["-"] * 6])
    chosen = [row["number"] for row in predictions["srrag"]]
    head = ("source", "labels", "labels without verbalising", "datastore", "chosen")
    share: list[list[str | float]] = [[*head, "cut off", "found nothing"]]
    for number, source in enumerate(sources):
        name = source.name
        shares = labels["share"], labels["share_closed_book"], datastore["share"]
        values = [share_of[name] for share_of in shares]
        if source.kind == "verbalise":
            counts = [str(sum(row["cut_off"] for row in predictions["verbalise"])), "-"]
        else:
            always = predictions.get(f"retrieve_{name}", predictions["retrieve"])
            counts = ["-", str(sum(row["fell_back"] for row in always))]
        share.append([name, *values, chosen.count(number) / len(chosen), *counts])
    flipped = f"{labels['flipped_by_verbalising']:.3f}"
    return {
        "Choice of the source; area below accuracy against retrieval rate": choice,
        f"Shares of the sources; verbalising changes {flipped} of the labels": share,
    }


def draw_figures(
    routing: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """The report's figures as SVG by title, from `analyse` and from every method's numbers."""
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
    figures = {
        "Accuracy against retrieval rate, over all thresholds": frontier.draw(),
        "Calibration": calibration.draw(),
    }
    thirds = {name: [m[t] for t in _THIRDS] for name, m in methods.items() if "head" in m}
    if thirds:
        bars = Bars(y="accuracy", groups=_THIRDS, bars=thirds)
        figures["Accuracy by the subject's popularity"] = bars.draw()
    return figures
