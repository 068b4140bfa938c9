"""What inverted indices share: their arrays' check, and the best of all passages' scores.

An inverted index has for each word its passages, one after the other: `rows[starts[w] :
starts[w + 1]]`, and the word's score in each, `data` at the same places.
"""

import numpy as np
from jaxtyping import Float, Int


def check_postings(
    data: Float[np.ndarray, "P"],
    rows: Int[np.ndarray, "P"],
    starts: Int[np.ndarray, "V+1"],
    size: int,
) -> None:
    """Raises a ValueError unless the arrays form a matrix `[words, size]` of finite scores."""
    kinds = zip((data, rows, starts), "fii", strict=True)
    if any(a.ndim != 1 or a.dtype.kind != kind for a, kind in kinds) or not len(starts):
        raise ValueError("an array is of another kind")
    if starts[0] != 0 or starts[-1] != len(data) or (np.diff(starts) < 0).any():
        raise ValueError("the words' rows do not follow each other")
    if len(rows) != len(data) or rows.min(initial=0) < 0 or rows.max(initial=0) >= size:
        raise ValueError(f"a row is none of the {size} passages")
    if not np.isfinite(data).all():
        raise ValueError("a score is NaN or infinite")


def find_best(scores: Float[np.ndarray, "N"], k: int) -> Int[np.ndarray, "n"]:
    """Rows of the up to `k` largest scores above 0, largest first, equal ones in row order."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    rows = np.flatnonzero((scores >= threshold) & (scores > 0))
    return rows[np.argsort(-scores[rows], kind="stable")[:k]].astype(np.int32)
