"""How an index keeps its embeddings: as float32, as float16, or as int8 with a scale for each row.

- `float16` rounds a number `x` between 6e-5 and 65,504 by at most `|x| / 2048`, and a smaller one
  by at most 3e-8.
- `int8` divides a row by its scale, the largest absolute value `m` of the row over 127, and rounds.
  A number is off by at most `m / 254`, and a dot product with a query `q` by at most
  `m / 254 * sum(|q|)`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int, Num

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, save_array

STORAGES = ("float32", "float16", "int8")
VALUES, SCALES = "dataset.npy", "scales.npy"
_LARGEST_CODE = 127
# By which 127 is still within float32, whichever way a scale is rounded.
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
_READ_TOGETHER = 1 << 16  # rows, which bounds the memory
_LARGEST_HEADER, _LARGEST_ROW = 1 << 16, 2048  # bytes


@dataclass(frozen=True, eq=False)
class Stored:
    """Embeddings as an index keeps them.

    Attributes:
        values: numbers of float32, float16 or int8.
        scales: what the int8 numbers of each row are multiplied by; None for the other kinds.
    """

    values: Num[np.ndarray, "N D"]
    scales: Float32[np.ndarray, "N"] | None = None

    @property
    def kind(self) -> str:
        """One of `STORAGES`."""
        return str(self.values.dtype)

    def take(self, rows: Int[np.ndarray, "..."]) -> Float32[np.ndarray, "... D"]:
        """Some rows as float32."""
        values = self.values[rows].astype(np.float32, copy=False)
        return values if self.scales is None else values * self.scales[rows][..., None]

    def keep(self, rows: Int[np.ndarray, "m"]) -> "Stored":
        """Some rows as they are kept."""
        return Stored(self.values[rows], None if self.scales is None else self.scales[rows])

    def join(self, other: "Stored") -> "Stored":
        """The rows of two, which are kept in the same way."""
        values = np.concatenate([self.values, other.values])
        if self.scales is None or other.scales is None:
            return Stored(values)
        return Stored(values, np.concatenate([self.scales, other.scales]))

    def read(self) -> Float32[np.ndarray, "N D"]:
        """All rows as float32: a copy, unless they are kept so."""
        if self.kind == "float32":
            return self.values
        embeddings = np.empty(self.values.shape, np.float32)
        for start in range(0, len(embeddings), _READ_TOGETHER):
            rows = np.arange(start, min(start + _READ_TOGETHER, len(embeddings)))
            embeddings[rows] = self.take(rows)
        return embeddings


def store(embeddings: Float[np.ndarray, "N D"], kind: str) -> Stored:
    """Converts finite float32 embeddings to one of `STORAGES`; float32 ones are not copied.

    Raises:
        RagJaxError: a number is too large for float16.
    """
    if kind == "float32":
        return Stored(embeddings)
    values = np.empty(embeddings.shape, kind)
    scales = np.empty(len(embeddings), np.float32) if kind == "int8" else None
    for start in range(0, len(embeddings), _READ_TOGETHER):
        block = slice(start, start + _READ_TOGETHER)
        if scales is None:
            values[block] = _halve(embeddings[block], start)
        else:
            values[block], scales[block] = _quantise(embeddings[block])
    return Stored(values, scales)


def _halve(block: Float[np.ndarray, "n D"], start: int) -> Float[np.ndarray, "n D"]:
    with np.errstate(over="ignore"):
        halves = block.astype(np.float16)
    is_finite = np.isfinite(halves).all(axis=1)
    if not is_finite.all():
        row = start + int(np.argmin(is_finite))
        raise RagJaxError(
            f"embeddings: row {row} has a number beyond float16's largest, 65,504: "
            "use the storage 'int8' or 'float32'"
        )
    return halves


def _quantise(
    block: Float[np.ndarray, "n D"],
) -> tuple[Int[np.ndarray, "n D"], Float32[np.ndarray, "n"]]:
    scales = np.minimum(np.abs(block).max(axis=1) / np.float32(_LARGEST_CODE), _LARGEST_SCALE)
    # A row of zeros, or of numbers so small that its scale is zero, has the codes 0.
    divisors = np.where(scales > 0, scales, np.inf)[:, None]
    # The scales of the smallest numbers are rounded so coarsely that a quotient exceeds 127.
    codes = np.clip(np.rint(block / divisors), -_LARGEST_CODE, _LARGEST_CODE)
    return codes.astype(np.int8), scales


def save_stored(stored: Stored, folder: Path) -> None:
    """Writes embeddings as one or two `.npy` files."""
    save_array(folder / VALUES, stored.values)
    if stored.scales is not None:
        save_array(folder / SCALES, stored.scales)


def load_stored(folder: Path, kind: str, shape: tuple[int, int]) -> Stored:
    """Memory-maps what `save_stored` wrote.

    Raises:
        RagJaxError: a file is missing or damaged, or holds something else than the kind and the
            shape say.
    """
    values = load_array(folder / VALUES, kind, shape)
    if not values.size:
        raise RagJaxError(f"{folder / VALUES} has shape {shape}: build the index again")
    if kind != "int8":
        return Stored(values)
    return Stored(values, load_array(folder / SCALES, "float32", shape[:1]))


def limit_array(size: int, width: int) -> int:
    """The most bytes that an array of an index has.

    The largest are embeddings, a matrix of their width, and the neighbours of rows in a graph.
    """
    return _LARGEST_HEADER + max(0, size) * max(4 * width, _LARGEST_ROW) + 4 * width * width


def load_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-maps an array of an index, whose floats have to be finite.

    Raises:
        RagJaxError: the file is missing or damaged, or holds another kind, shape or a NaN.
    """
    array = map_array(path)
    if array.dtype != dtype:
        raise RagJaxError(f"{path} holds {array.dtype}, not {dtype}: build the index again")
    if array.shape != shape:
        raise RagJaxError(
            f"{path} has shape {array.shape}, not {shape} by the index's size and width: build the "
            "index again"
        )
    if array.dtype.kind == "f":
        check_finite(array, str(path))
    return array


def check_finite(array: Float[np.ndarray, "N *rest"], name: str) -> None:
    """Raises a RagJaxError that names the first row with a NaN or an infinity."""
    for start in range(0, len(array), _READ_TOGETHER):
        block = array[start : start + _READ_TOGETHER]
        is_finite = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if not is_finite.all():
            row = start + int(np.argmin(is_finite))
            raise RagJaxError(f"{name}: row {row} has a NaN or an infinity")
