"""Matrices of embeddings: their checks and their dot products, computed in blocks."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.storage import Stored, check_finite
from rag_jax.runtime.errors import RagJaxError

# Number of queries whose passages are gathered together, and of such passages, which bound the
# memory.
_SCORED_TOGETHER, _GATHERED = 64, 8192


def check_matrix(values: Any, name: str) -> Float[np.ndarray, "N D"]:
    """Converts values to a contiguous float32 matrix; a matrix of this kind is not copied.

    Raises:
        RagJaxError: the values are no real numbers, do not have two dimensions, or not all are
            finite.
    """
    try:
        kind = np.asarray(values).dtype
        if kind.kind in "SU":
            raise ValueError
        if kind.kind in "cmM":  # which NumPy would convert in silence
            raise RagJaxError(f"{name} are {kind}: expected real numbers")
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(values, np.float32)
    except (TypeError, ValueError):
        raise RagJaxError(f"{name} are no matrix of numbers: encode texts first") from None
    if np.ndim(values) != 2:
        raise RagJaxError(f"{name} have shape {np.shape(values)}: expected [rows, dimensions]")
    check_finite(matrix, name)
    return matrix


def score_rows(
    embeddings: Stored,
    queries: Float[np.ndarray, "Q D"],
    rows: Int[np.ndarray, "Q c"],
    k: int,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """The `k` largest dot products of each query with its `rows`, largest first, and their rows.

    Equal dot products are in the order of the rows. Rows of -1 are none; each query has `k` others.
    """
    scores = np.empty(rows.shape, np.float32)
    together = max(1, min(_SCORED_TOGETHER, _GATHERED // rows.shape[1]))
    for start in range(0, len(rows), together):
        block = slice(start, start + together)
        # [Q, D] x [Q, c, D] -> [Q, c]
        scores[block] = np.einsum("qd,qcd->qc", queries[block], embeddings.take(rows[block]))
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
