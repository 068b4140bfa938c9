"""Matrices of embeddings: their checks and their dot products, computed in blocks."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.storage import Stored, check_finite
from rag_jax.runtime.errors import RagJaxError

# Number of queries whose passages are gathered together, which bounds the memory.
_SCORED_TOGETHER = 64


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
    rows: Int[np.ndarray, "Q k"],
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """Dot products of each query with its `rows` of the embeddings, largest first, and the rows.

    Equal dot products are in the order of the rows.

    Raises:
        RagJaxError: a dot product is beyond float32.
    """
    scores = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _SCORED_TOGETHER):
        block = slice(start, start + _SCORED_TOGETHER)
        # [Q, D] x [Q, k, D] -> [Q, k]
        scores[block] = np.einsum("qd,qkd->qk", queries[block], embeddings.take(rows[block]))
    if not np.isfinite(scores).all():
        raise RagJaxError(
            "the embeddings or the queries are too large: their dot products are beyond float32"
        )
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
