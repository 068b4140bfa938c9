"""Paired comparison of methods: the difference of two methods on the same questions.

The questions are the same, so the difference of each question counts, not the two means: two
methods whose own intervals overlap may still differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.runtime.errors import RagJaxError

_RESAMPLES = 10_000
_TOGETHER = 1 << 21  # numbers that are drawn at once, which bounds the memory


def compare_pairs(
    scores: Float[np.ndarray, "N"], reference: Float[np.ndarray, "N"], *, seed: int = 0
) -> dict[str, Any]:
    """The difference of two methods' scores of the same questions, `scores - reference`.

    Returns:
        - `n`: number of questions; `better` and `worse`: of those with a difference above and
          below 0.
        - `difference`: the mean.
        - `ci95`: its 95 % interval. For scores of 0 and 1 it is Bonett and Price's (2012), which
          has a width even where no question differs; for graded scores that of the paired bootstrap
          (Efron 1979; percentiles of the means of 10,000 resamples of the questions).
        - `p`: the two-sided probability of a mean as far from 0 if the methods were equal, and
          `test`, its name. For scores of 0 and 1 it is "McNemar", the exact test (McNemar 1947): a
          question that differs favours either method with probability 1/2. For graded scores it is
          "permutation", the same with the size of each difference (Fisher's randomisation test,
          10,000 draws; Smucker et al. 2007).

    Raises:
        RagJaxError: there are no questions, the numbers of scores differ, or a score is not finite.
    """
    pair = np.asarray(scores, float), np.asarray(reference, float)
    if not len(pair[0]) or pair[0].shape != pair[1].shape:
        sizes = " and ".join(str(len(values)) for values in pair)
        raise RagJaxError(f"scores: {sizes} of two methods; give the same questions, at least one")
    if not np.isfinite(pair).all():
        raise RagJaxError("scores: not all are finite numbers")
    from scipy import stats  # imported here: slow, and asking needs none

    differences = pair[0] - pair[1]
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    if np.isin(pair, (0, 1)).all():
        interval = _adjust_wald(len(differences), better, worse)
        test = "McNemar"
        p = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    else:
        rng = np.random.default_rng(seed)
        means = np.concatenate([*_resample(differences, rng)])
        low, high = np.quantile(means, (0.025, 0.975))
        interval = float(low), float(high)
        test, p = "permutation", _permute(differences, rng)
    return {
        "n": len(differences),
        "difference": float(differences.mean()),
        "ci95": interval,
        "better": better,
        "worse": worse,
        "p": float(p),
        "test": test,
    }


def draw_counts(count: int, resamples: int, *, seed: int = 0) -> Iterator[Int[np.ndarray, "B N"]]:
    """Yields how often each of `count` questions is in each resample, some resamples at once."""
    rng = np.random.default_rng(seed)
    for size in _split(count, resamples):
        yield rng.multinomial(count, np.full(count, 1 / count), size=size)


def _adjust_wald(n: int, better: int, worse: int) -> tuple[float, float]:
    """The normal interval with one question more that is better and one more that is worse.

    Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data"; no end is beyond -1 or 1.
    """
    up, down = (better + 1) / (n + 2), (worse + 1) / (n + 2)
    # 97.5 % of a normal variable's values are below 1.959964.
    half = 1.959964 * ((up + down - (up - down) ** 2) / (n + 2)) ** 0.5
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _resample(
    differences: Float[np.ndarray, "N"], rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "B"]]:
    """Yields the means of resamples: how often each value is drawn is multinomial."""
    values, counts = np.unique(differences, return_counts=True)
    for size in _split(len(values)):
        drawn: Int[np.ndarray, "B V"] = rng.multinomial(
            len(differences), counts / len(differences), size=size
        )
        yield drawn @ values / len(differences)


def _permute(differences: Float[np.ndarray, "N"], rng: np.random.Generator) -> float:
    """The p-value of the mean under random signs: of equal sizes a binomial number is positive."""
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    far = 0
    for size in _split(len(sizes)):
        positive: Int[np.ndarray, "B V"] = rng.binomial(counts, 0.5, size=(size, len(sizes)))
        # Sums that differ by rounding alone are as far.
        sums = np.abs((2 * positive - counts) @ sizes)
        far += int((sums >= abs(differences.sum()) - 1e-9 * sizes.max()).sum())
    return (1 + far) / (1 + _RESAMPLES)


def _split(width: int, resamples: int = _RESAMPLES) -> Iterator[int]:
    """Numbers of resamples that are drawn at once, of `width` numbers each."""
    most, left = max(1, _TOGETHER // width), resamples
    while left:
        yield min(most, left)
        left -= min(most, left)


def compare_rows(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    reference: str,
    scores: Mapping[str, str],
) -> dict[str, Any]:
    """The paired comparison of every method with one of them.

    Args:
        predictions: each method's graded records, of the same questions in the same order.
        reference: the method that the others are compared with.
        scores: the field of the records that has each score, by the name of the score.

    Returns:
        `reference`, and `rows`: for each other method and each score `compare_pairs` over the
        questions that have the score.

    Raises:
        RagJaxError: two methods' questions differ.
    """
    ours, rows = predictions[reference], {}
    for method, theirs in predictions.items():
        if [row.get("id") for row in theirs] != [row.get("id") for row in ours]:
            raise RagJaxError(f"{method} and {reference}: answer other questions; run both again")
        if method == reference:
            continue
        rows[method] = {}
        for name, field in scores.items():
            pairs = [
                (row[field], other[field])
                for row, other in zip(theirs, ours, strict=True)
                if field in row and field in other
            ]
            if pairs:
                rows[method][name] = compare_pairs(*np.asarray(pairs, float).T)
    return {"reference": reference, "rows": rows}


def tabulate_pairs(paired: Mapping[str, Any]) -> list[list[str]]:
    """The result of `compare_rows` as a table with its heading."""
    head = ("score", "difference", "95 % interval", "better", "worse", "p", "test")
    table = [[f"against {paired['reference']}", *head]]
    for method, by_score in paired["rows"].items():
        for score, pair in by_score.items():
            low, high = pair["ci95"]
            numbers = f"{pair['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"
            counts = str(pair["better"]), str(pair["worse"])
            p = f"{pair['p']:.3f}" if pair["p"] >= 0.001 else "< 0.001"
            table.append([method, score.replace("_", " "), *numbers, *counts, p, pair["test"]])
    return table
