"""What inverted indices share: their arrays' check, and the search for the best passages.

An inverted index has for each word its passages, one after the other: `rows[starts[w] :
starts[w + 1]]`, and the word's score in each, `data` at the same places.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.runtime.progress import log


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


def find_best(
    data: Float[np.ndarray, "P"],
    rows: Int[np.ndarray, "P"],
    starts: Int[np.ndarray, "V+1"],
    words: Int[np.ndarray, "n"],
    weights: Float[np.ndarray, "n"],
    scores: Float[np.ndarray, "N"],
    *,
    k: int,
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The up to `k` largest sums above 0 of a question's words, and their passages.

    A passage's sum is over the words, in their order, of the word's weight times its score there.
    Compiled by numba where it is installed; the result is the same to the bit.

    Args:
        words: of the question; one that occurs twice counts twice.
        scores: zeros, and zeros again afterwards: room for the sums, made once for many questions.

    Returns:
        Sums, largest first and equal ones in the order of the rows, and the rows.
    """
    return _choose_search()(data, rows, starts, words, weights, scores, k)


def _search(
    data: Any, rows: Any, starts: Any, words: Any, weights: Any, scores: Any, k: int
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """`find_best` by NumPy."""
    for word, weight in zip(words.tolist(), weights, strict=True):
        places = slice(starts[word], starts[word + 1])
        scores[rows[places]] += weight * data[places]  # a word's rows are distinct
    found = np.flatnonzero(scores > 0)
    sums = scores[found]
    scores[:] = 0
    if len(found) > k:
        threshold = np.partition(sums, len(sums) - k)[len(sums) - k]
        keep = np.flatnonzero(sums >= threshold)
        sums, found = sums[keep], found[keep]
    order = np.argsort(-sums, kind="stable")[:k]
    return sums[order], found[order].astype(rows.dtype)


def _search_in_loops(
    data: Any, rows: Any, starts: Any, words: Any, weights: Any, scores: Any, k: int
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """`find_best` for numba to compile."""
    for i in range(len(words)):
        for place in range(starts[words[i]], starts[words[i] + 1]):
            scores[rows[place]] += weights[i] * data[place]
    # A heap of the best so far, the worst of them first: the lowest sum and, of equal ones, the
    # last row. Rows come in order, so that a sum equal to the worst is no better.
    sums, found, count = np.empty(k, scores.dtype), np.empty(k, rows.dtype), 0
    worst = scores.dtype.type(0)
    for row in range(len(scores)):
        value = scores[row]
        if value <= worst:  # nearly always, which a processor foresees
            continue
        if count < k:  # up from the end
            at, count = count, count + 1
            while at and sums[(at - 1) // 2] >= value:
                above = (at - 1) // 2
                sums[at], found[at] = sums[above], found[above]
                at = above
        else:  # down from the top
            at = 0
            while 2 * at + 1 < k:
                below = 2 * at + 1
                right = below + 1
                if right < k and (
                    sums[right] < sums[below]
                    or (sums[right] == sums[below] and found[right] > found[below])
                ):
                    below = right
                if sums[below] >= value:
                    break
                sums[at], found[at] = sums[below], found[below]
                at = below
        sums[at], found[at] = value, row
        if count == k:
            worst = sums[0]
    scores[:] = 0
    sums, found = sums[:count], found[:count]
    by_row = np.argsort(found)
    order = by_row[np.argsort(-sums[by_row], kind="mergesort")]
    return sums[order], found[order]


@functools.cache
def _choose_search() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The compiled search where numba is installed, else NumPy's."""
    try:
        import numba
    except ImportError:
        log("words: numba is not installed, NumPy searches: pip install 'rag_jax[numba]'")
        return _search
    try:  # compiling takes seconds: what comes out is kept with Python's own compiled files
        return numba.njit(nogil=True, cache=True)(_search_in_loops)
    except RuntimeError:  # neither there nor in the user's cache folder can anything be written
        return numba.njit(nogil=True)(_search_in_loops)
