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
    With numba only passages with one of the words are looked at, without it all; the sums are the
    same to the bit.

    Args:
        words: of the question; one that occurs twice counts twice.
        scores: zeros, and zeros again afterwards: room for the sums, made once for many questions.

    Returns:
        Sums, largest first and equal ones in the order of the rows, and the rows.
    """
    sums, found = _choose_add_up()(data, rows, starts, words, weights, scores)
    if len(found) > k:
        threshold = np.partition(sums, len(sums) - k)[len(sums) - k]
        keep = np.flatnonzero(sums >= threshold)
        sums, found = sums[keep], found[keep]
    order = np.lexsort((found, -sums))[:k]
    return sums[order], found[order]


def _add_up(
    data: Any, rows: Any, starts: Any, words: Any, weights: Any, scores: Any
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The sums above 0 and their rows, by NumPy."""
    for word, weight in zip(words.tolist(), weights, strict=True):
        places = slice(starts[word], starts[word + 1])
        scores[rows[places]] += weight * data[places]  # a word's rows are distinct
    found = np.flatnonzero(scores > 0).astype(rows.dtype)
    sums = scores[found]
    scores[:] = 0
    return sums, found


def _add_up_touched(
    data: Any, rows: Any, starts: Any, words: Any, weights: Any, scores: Any
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The same, for numba to compile: only the words' own passages are looked at."""
    most = 0
    for word in words:
        most += starts[word + 1] - starts[word]
    touched, count = np.empty(most, rows.dtype), 0
    for i in range(len(words)):
        for place in range(starts[words[i]], starts[words[i] + 1]):
            row = rows[place]
            if scores[row] == 0:
                touched[count] = row
                count += 1
            scores[row] += weights[i] * data[place]
    sums, found, kept = np.empty(count, scores.dtype), np.empty(count, rows.dtype), 0
    for row in touched[:count]:
        if scores[row] > 0:
            sums[kept], found[kept] = scores[row], row
            kept += 1
        scores[row] = 0  # one that is touched again after its sum was 0 counts once
    return sums[:kept], found[:kept]


@functools.cache
def _choose_add_up() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The compiled sums where numba is installed, else NumPy's."""
    try:
        import numba
    except ImportError:
        log("words: numba is not installed, NumPy adds up scores: pip install 'rag_jax[numba]'")
        return _add_up
    return numba.njit(nogil=True)(_add_up_touched)
