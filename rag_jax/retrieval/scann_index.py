"""Approximate search by ScaNN (Guo et al. 2020)."""

import logging
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.storage import Stored, save_stored
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array
from rag_jax.runtime.outside import is_there, parsing, require_file

# ScaNN's guide ("ScaNN Algorithms and Configuration", rules of thumb) recommends brute force below
# the first size, asymmetric hashing below the second, and partitions for larger sizes.
_HASH_FROM, _PARTITION_FROM = 20_000, 100_000
# What ScaNN writes of its files, which it looks for wherever this says.
_ASSET = r'assets {\s*asset_type: [A-Z_]+\s*asset_path: "([\w.]+)"\s*}\s*'
_LARGEST_ASSETS = 1 << 16  # bytes
_ASSETS, _HASHED, _LEAVES = "scann_assets.pbtxt", "hashed_dataset.npy", "datapoint_to_token.npy"
FILES = frozenset(
    {
        _ASSETS,
        _HASHED,
        _LEAVES,
        "scann_config.pb",
        "ah_codebook.pb",
        "serialized_partitioner.pb",
    }
)
# Dimensions that one code stands for, and number of codes.
_CODED, _CODES = 2, 16
# A row is long from this multiple of the median's length on; up to this number of long rows are
# compared exactly with every query.
_LONG, _MOST_LONG = 3, 256

_logger = logging.getLogger(__name__)


class Scann(NamedTuple):
    """ScaNN's searcher, and the few long rows that it would not represent well.

    The codes of hashing are fitted to all rows, and one row that is 100 times as long as the others
    takes codes from all of them. Long rows are therefore hashed at the median length, and compared
    with every query beside ScaNN.
    """

    searcher: Any
    long_rows: Int[np.ndarray, "m"]
    long_embeddings: Float[np.ndarray, "m D"]


def build_scann(embeddings: Float[np.ndarray, "N D"]) -> Scann:
    """Builds a ScaNN searcher without ids, with settings by the number of float32 embeddings.

    The same embeddings give the same searcher to the bit, on any number of threads.
    """
    from scann import scann_ops_pybind

    size = len(embeddings)
    long_rows, factors = _find_long(embeddings)
    hashed = embeddings
    if len(long_rows):
        hashed = embeddings.copy()
        hashed[long_rows] *= factors[:, None]
    # 10 is the default number of neighbours, which every search overrides.
    builder = scann_ops_pybind.builder(hashed, 10, "dot_product")
    if size < _HASH_FROM:
        return Scann(builder.score_brute_force().build(), long_rows, embeddings[long_rows])
    if size >= _PARTITION_FROM:
        leaves = math.isqrt(size)
        # Of ScaNN's two ways to choose the first centres, k-means++ alone has a seed of its own.
        builder = builder.tree(leaves, max(1, leaves // 10), random_init=False)
    # 0.2 is the threshold that Guo et al. (2020) use for vectors of length 1.
    builder = builder.score_ah(_CODED, anisotropic_quantization_threshold=0.2).reorder(100)
    return Scann(builder.build(), long_rows, embeddings[long_rows])


def _find_long(
    embeddings: Float[np.ndarray, "N D"],
) -> tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """The long rows, and the factors that bring them to the median length; none without hashing.

    Rows of length 0 do not count. If very many rows are long, none is treated apart: a warning says
    that passages may be missed.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
    if len(embeddings) < _HASH_FROM:
        return nothing
    lengths = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    median = np.median(lengths[lengths > 0]) if lengths.any() else 0.0
    rows = np.flatnonzero(lengths > _LONG * median)
    if len(rows) <= _MOST_LONG:
        return rows, (median / lengths[rows]).astype(np.float32)
    _logger.warning(
        "%d of %d embeddings are over %d times as long as the median: ScaNN may miss passages; "
        "use the backend 'exact', or an encoder that normalises its embeddings",
        len(rows),
        len(embeddings),
        _LONG,
    )
    return nothing


def search_scann(
    index: Scann,
    queries: Float[np.ndarray, "Q D"],
    k: int,
    size: int,
    *,
    effort: int | None = None,
) -> Int[np.ndarray, "Q k"]:
    """Rows of approximately the `k <= size` largest dot products. Always `k` different rows.

    Args:
        effort: number of partitions that are looked at; None for the built searcher's.
    """
    search = index.searcher.search_batched_parallel
    if size < _HASH_FROM:
        return _check_rows(search(queries, k)[0], size)
    rows, scores = search(queries, k, min(size, max(100, 10 * k)), effort)
    # If the searched partitions hold fewer than k rows, ScaNN pads with row 0 and a score of NaN.
    # These queries are searched again in all partitions.
    is_short = np.isnan(scores).any(axis=1)
    if is_short.any():
        leaves = math.isqrt(size)
        rows[is_short], scores[is_short] = search(queries[is_short], k, size, leaves)
    if len(index.long_rows):
        scores = np.where(np.isin(rows, index.long_rows), -np.inf, scores)
        others = np.broadcast_to(index.long_rows, (len(rows), len(index.long_rows)))
        rows = np.concatenate([rows, others], axis=1)
        # [Q, D] x [m, D] -> [Q, m]
        scores = np.concatenate([scores, queries @ index.long_embeddings.T], axis=1)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        rows = np.take_along_axis(rows, best, axis=1)
    return _check_rows(rows, size)


def _check_rows(rows: Int[np.ndarray, "Q k"], size: int) -> Int[np.ndarray, "Q k"]:
    """Refuses rows beyond the embeddings, which ScaNN finds if its files contradict them."""
    if rows.max() >= size or rows.min() < 0:
        raise RagJaxError(
            f"ScaNN found row {rows.max()} among {size} embeddings: its files are of another "
            "index; build the index again"
        )
    return rows.astype(np.int32)


def save_scann(index: Scann, stored: Stored, folder: Path) -> None:
    """Writes ScaNN's files, which include the embeddings.

    No pickle is among them, because the searcher stores no ids.
    """
    index.searcher.serialize(str(folder), relative_path=True)
    if len(index.long_rows):  # which ScaNN has at another length
        save_stored(stored, folder)


def load_scann(folder: Path, embeddings: Float[np.ndarray, "N D"]) -> Scann:
    """Reads the files that the `serialize` method of a ScaNN searcher wrote.

    ScaNN's loader would unpickle a file of ids. The caller must make sure that the folder has none.

    Raises:
        RagJaxError: ScaNN cannot read the files, such as those of another version, or they name
            files elsewhere or contradict the embeddings.
    """
    from scann import scann_ops_pybind

    with parsing(folder, "is no index that ScaNN can read", "build the index again"):
        _check_assets(folder, *embeddings.shape)
        searcher = scann_ops_pybind.load_searcher(str(folder), assets_backcompat_shim=False)
    long_rows, _ = _find_long(embeddings)
    return Scann(searcher, long_rows, embeddings[long_rows])


def _check_assets(folder: Path, size: int, width: int) -> None:
    """Raises a ValueError if ScaNN would read files elsewhere, or beyond the ends of its arrays."""
    require_file(folder / _ASSETS, largest=_LARGEST_ASSETS)
    text = (folder / _ASSETS).read_text("utf-8")
    if not re.fullmatch(f"({_ASSET})+", text):
        raise ValueError(f"{_ASSETS} is not as ScaNN writes it, or names a file elsewhere")
    for name in (match[1] for match in re.finditer(_ASSET, text)):
        require_file(folder / name)
    codes = (size, -(-width // _CODED)), _CODES
    for name, (shape, end) in {_HASHED: codes, _LEAVES: ((size,), math.isqrt(size))}.items():
        if not is_there(folder / name):
            continue
        array = map_array(folder / name)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}, not {list(shape)}")
        if array.min() < 0 or array.max() >= end:
            raise ValueError(f"{name} has numbers that are not from 0 to {end - 1}")
