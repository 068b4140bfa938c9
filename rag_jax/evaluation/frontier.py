"""Accuracy against retrieval rate: a router's frontier, and routers compared along it.

The accuracies of two routers that search differently often do not tell which routes better: where
searching helps, whatever searches more is more accurate. Their accuracies at one retrieval rate do,
and so do the areas below their frontiers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.evaluation.pairs import draw_counts

RESAMPLES = 2000
MEASURES = ("accuracy_at_rate", "auroc", "area")


class Router(NamedTuple):
    """A router's questions.

    Attributes:
        scores: a question with a higher score is searched first.
        internal: whether the model's own knowledge answers a question, 1 or 0.
        external: whether the searched knowledge does.
        better: whether a search is right: some searched source answers, and the model does not.
        searched: whether the router does search, 1 or 0.
    """

    scores: Float[np.ndarray, "N"]
    internal: Float[np.ndarray, "N"]
    external: Float[np.ndarray, "N"]
    better: Bool[np.ndarray, "N"]
    searched: Float[np.ndarray, "N"]


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
    from sklearn.metrics import auc  # imported here: slow, and asking needs none

    area = auc([p["retrieval_rate"] for p in points], [p["accuracy"] for p in points])
    return {
        "area": float(area),
        "area_random": float((internal.mean() + external.mean()) / 2),
        "area_oracle": float(auc(rates, internal.mean() + np.concatenate([[0], gains]))),
        "points": points,
    }


def measure_router(
    router: Router, counts: Int[np.ndarray, "B N"], rates: Float[np.ndarray, "B"]
) -> dict[str, Float[np.ndarray, "B"]]:
    """The measures of a router on resamples of its questions.

    Questions with equal scores are searched in random order: each measure is the expectation, which
    between two thresholds runs in a straight line.

    Args:
        counts: how often each question is in each resample, at least one question a resample.
        rates: the retrieval rate of each resample at which the accuracy is taken.

    Returns:
        `accuracy_at_rate`; `auroc`, of the score as a predictor of whether a search is right, NaN
        where all questions agree; and `area`, below accuracy against retrieval rate.
    """
    order = np.argsort(-router.scores, kind="stable")
    starts = np.flatnonzero(np.diff(router.scores[order], prepend=np.inf))

    def add_up(values: Float[np.ndarray, "N"] | float) -> Float[np.ndarray, "B G"]:
        """Sums over the questions of each score, from the highest score down."""
        return np.add.reduceat((counts * values)[:, order].astype(float), starts, axis=1)

    sizes, gains = add_up(1.0), add_up(router.external - router.internal)
    total = sizes.sum(axis=1)
    none = np.zeros((len(counts), 1))
    searched = np.hstack([none, sizes.cumsum(axis=1)]) / total[:, None]
    right = counts @ router.internal
    accuracy = (right[:, None] + np.hstack([none, gains.cumsum(axis=1)])) / total[:, None]
    area = (np.diff(searched) * (accuracy[:, 1:] + accuracy[:, :-1]) / 2).sum(axis=1)

    positive = add_up(router.better.astype(float))
    negative = sizes - positive
    below = negative.sum(axis=1)[:, None] - negative.cumsum(axis=1) + negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    wins = (positive * below).sum(axis=1)
    auroc = np.divide(wins, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
    at_rate = _interpolate(rates, searched, accuracy)
    return {"accuracy_at_rate": at_rate, "auroc": auroc, "area": area}


def _interpolate(
    at: Float[np.ndarray, "B"], x: Float[np.ndarray, "B P"], y: Float[np.ndarray, "B P"]
) -> Float[np.ndarray, "B"]:
    """Each row's `y` at one place between its ascending `x`."""
    last = x.shape[1] - 2
    left = np.clip((x <= at[:, None] + 1e-12).sum(axis=1) - 1, 0, last)[:, None]
    (x0, x1), (y0, y1) = (
        [np.take_along_axis(values, left + step, axis=1)[:, 0] for step in (0, 1)]
        for values in (x, y)
    )
    width = x1 - x0
    part = np.divide(at - x0, width, out=np.zeros_like(at), where=width > 0)
    return y0 + np.clip(part, 0, 1) * (y1 - y0)


def compare_routers(
    routers: Mapping[str, Router], reference: str, *, seed: int = 0
) -> dict[str, Any]:
    """Every router against one of them, on the same questions.

    The accuracy of every router is taken at the reference's own retrieval rate. Intervals are of
    the paired bootstrap: in each of 2,000 resamples of the questions all is measured anew, the
    reference's rate too.

    Args:
        routers: by name, all over the same questions in the same order.

    Returns:
        `reference`; `retrieval_rate`, the reference's; and `rows`: for each router each measure's
        `value` (None for an AUROC where all questions agree) and, but for the reference,
        `difference` to the reference and its `ci95` (None where either is undefined).
    """
    ours = routers[reference]
    count = len(ours.searched)

    def measure(counts: Int[np.ndarray, "B N"]) -> dict[str, dict[str, Float[np.ndarray, "B"]]]:
        rates = counts @ ours.searched / count
        return {name: measure_router(router, counts, rates) for name, router in routers.items()}

    whole = measure(np.ones((1, count), int))
    drawn = [measure(counts) for counts in draw_counts(count, RESAMPLES, seed=seed)]
    rows: dict[str, Any] = {}
    for name in routers:
        rows[name] = {}
        for key in MEASURES:
            value = float(whole[name][key][0])
            rows[name][key] = {"value": None if np.isnan(value) else value}
            if name == reference:
                continue
            parts = [part[name][key] - part[reference][key] for part in drawn]
            difference = value - float(whole[reference][key][0])
            known = np.concatenate(parts)
            known = known[~np.isnan(known)]
            defined = not np.isnan(difference) and known.size
            interval = np.quantile(known, (0.025, 0.975)).tolist() if defined else None
            rows[name][key] |= {"difference": difference if defined else None, "ci95": interval}
    return {
        "reference": reference,
        "retrieval_rate": float(ours.searched.mean()),
        "rows": rows,
    }
