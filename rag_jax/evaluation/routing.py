"""How good the choice of sources is: the frontier, the choice itself, its calibration."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import auc, brier_score_loss, roc_auc_score

from rag_jax.evaluation.answers import calibrate, compute_accuracy, popularity_thirds
from rag_jax.evaluation.figures import Bars, Chart


class Source(Protocol):
    """A knowledge source.

    Attributes:
        name: of the source.
        kind: "verbalise" for the model itself, "search" for an index.
    """

    name: str
    kind: str


# Methods that choose, in the order of the report.
ROUTED = ("srrag", "without_knn", "without_verbalisation", "without_stage2", "selective")
_THIRDS = ("head", "middle", "tail")


def analyse(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]], sources: Sequence[Source]
) -> dict[str, Any]:
    """For every method that chooses its source: what the choice is worth.

    Args:
        predictions: each method's records, with the sources' "scores" and "correct_by_source".
    """
    return {
        name: analyse_choices(predictions[name], sources) for name in ROUTED if name in predictions
    }


def analyse_choices(rows: Sequence[Mapping[str, Any]], sources: Sequence[Source]) -> dict[str, Any]:
    """One method's choices (paper, section 4.1).

    Verbalising is right where it answers no worse than any searched source; else searching one of
    the sources that answer is. The AUROC is of the searched sources' largest score as a predictor
    of that; it is None where all questions are alike. Calibration is of their share of all scores.
    """
    external = np.asarray([source.kind == "search" for source in sources])
    scores = np.asarray([row["scores"] for row in rows], float)
    correct = np.asarray([row["correct_by_source"] for row in rows], float)
    chosen = np.asarray([row["number"] for row in rows])
    best = correct[:, external].max(axis=1)
    better = best > correct[:, ~external][:, 0]
    fits = np.take_along_axis(correct, chosen[:, None], axis=1)[:, 0] == best
    right = np.where(better, external[chosen] & fits, ~external[chosen])
    accuracy, interval = compute_accuracy(right.astype(float).tolist())
    searched = scores[:, external]
    varied = better.any() and not better.all()
    total = scores.sum(axis=1)
    # Scores that vanish say nothing of either side.
    share = np.where(total > 0, searched.sum(axis=1) / np.where(total > 0, total, 1), 0.5)
    return {
        "retrieval_better": float(better.mean()),
        "choice_accuracy": accuracy,
        "choice_ci95": interval,
        "auroc": float(roc_auc_score(better, searched.max(axis=1))) if varied else None,
        "calibration": {
            "brier": float(brier_score_loss(better, share, labels=[False, True])),
            **calibrate(share, better),
        },
        "frontier": trace_frontier(
            searched.max(axis=1),
            correct[:, ~external][:, 0],
            np.take_along_axis(correct[:, external], searched.argmax(axis=1)[:, None], 1)[:, 0],
        ),
        "by_popularity": _split_by_popularity(rows),
    }


def trace_frontier(
    scores: Float[np.ndarray, "N"],
    internal: Float[np.ndarray, "N"],
    external: Float[np.ndarray, "N"],
) -> dict[str, Any]:
    """Accuracy against retrieval rate over all thresholds.

    Args:
        scores: questions with a score above the threshold are searched.
        internal: whether the model's own knowledge answers a question, 1 or 0.
        external: whether what is found does.

    Returns:
        `points` from never to always searching, each with the `tau` that it needs (None: any below
        all scores); the `area` below them; and that of choosing at random, `area_random`, and of
        searching first where it helps and last where it harms, `area_oracle`.
    """
    taus = [*np.unique(scores)[::-1].tolist(), None]
    points = []
    for tau in taus:
        searched = np.ones(len(scores), bool) if tau is None else scores > tau
        accuracy = np.where(searched, external, internal).mean()
        points.append(
            {
                "tau": tau,
                "retrieval_rate": float(searched.mean()),
                "accuracy": float(accuracy),
            }
        )
    order = np.argsort(internal - external, kind="stable")
    gains = np.cumsum((external - internal)[order]) / len(scores)
    rates = np.arange(len(scores) + 1) / len(scores)
    return {
        "area": _area([p["retrieval_rate"] for p in points], [p["accuracy"] for p in points]),
        "area_random": float((internal.mean() + external.mean()) / 2),
        "area_oracle": _area(rates, internal.mean() + np.concatenate([[0], gains])),
        "points": points,
    }


def _area(rates: Sequence[float], accuracies: Sequence[float]) -> float:
    return float(auc(rates, accuracies))


def _split_by_popularity(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    thirds = np.asarray(popularity_thirds([row["popularity"] for row in rows]))
    found = {}
    for third in _THIRDS:
        members: Bool[np.ndarray, N] = thirds == third
        if members.any():
            values = {
                name: np.asarray([row[field] for row in rows])[members]
                for name, field in (("accuracy", "correct"), ("retrieval_rate", "retrieved"))
            }
            found[third] = {
                "n": int(members.sum()),
                **{name: float(value.mean()) for name, value in values.items()},
            }
    return found


def list_tables(
    routing: Mapping[str, Any],
    labels: Mapping[str, Any],
    datastore: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    sources: Sequence[Source],
) -> dict[str, list[list[str | float]]]:
    """The report's tables besides that of the methods.

    Args:
        routing: what `analyse` gave.
        labels: what `count_labels` gave; `datastore` the shares in it.
        predictions: each method's records.
    """
    choice: list[list[str | float]] = [
        ["method", "right source", "AUROC", "area", "of an oracle", "at random", "ECE", "Brier"]
    ]
    for name, found in routing.items():
        frontier, calibration = found["frontier"], found["calibration"]
        choice.append(
            [
                name,
                found["choice_accuracy"],
                "-" if found["auroc"] is None else found["auroc"],
                frontier["area"],
                frontier["area_oracle"],
                frontier["area_random"],
                calibration["ece"],
                calibration["brier"],
            ]
        )
    chosen = [row["number"] for row in predictions["srrag"]]
    head = ("source", "labels", "labels without verbalising", "datastore", "chosen")
    share: list[list[str | float]] = [[*head, "cut off", "found nothing"]]
    for number, source in enumerate(sources):
        name = source.name
        shares = (labels["share"], labels["share_closed_book"], datastore["share"])
        values = [each[name] for each in shares]
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
    """The report's pictures as SVG by their titles.

    Args:
        routing: what `analyse` gave.
        methods: what the report has of every method.
    """
    lines = {
        name: [(p["retrieval_rate"], p["accuracy"]) for p in found["frontier"]["points"]]
        for name, found in routing.items()
    }
    ends = next(iter(lines.values()))
    curves = {
        name: [(b["probability"], b["share"]) for b in found["calibration"]["bins"]]
        for name, found in routing.items()
    }
    frontier = Chart(
        x="retrieval rate",
        y="accuracy",
        lines=lines,
        points={
            name: (numbers["retrieval_rate"], numbers["accuracy"])
            for name, numbers in methods.items()
        },
        guides={"sources at random": [ends[0], ends[-1]]},
    )
    calibration = Chart(
        x="share of the searched sources in all scores",
        y="retrieval is better",
        lines=curves,
        guides={"calibrated": [(0, 0), (1, 1)]},
    )
    figures = {
        "Accuracy against retrieval rate, over all thresholds": frontier.draw(),
        "Calibration": calibration.draw(),
    }
    thirds = {
        name: [numbers[third] for third in _THIRDS]
        for name, numbers in methods.items()
        if "head" in numbers
    }
    if thirds:
        bars = Bars(y="accuracy", groups=_THIRDS, bars=thirds)
        figures["Accuracy by the subject's popularity"] = bars.draw()
    return figures
