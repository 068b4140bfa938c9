"""Token ids of many texts, kept in one array."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int


class TokenRows(Sequence[Int[np.ndarray, "T"]]):
    """The token ids of many texts in one array, of which a row is a slice: 4 bytes a token.

    A list takes 8 to 36.
    """

    def __init__(self, rows: Iterable[Sequence[int]]):
        flat, ends = array("i"), array("q", [0])
        for row in rows:
            flat.extend(row)
            ends.append(len(flat))
        self._flat, self._ends = np.frombuffer(flat, np.int32), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> Int[np.ndarray, "T"]:
        if not 0 <= row < len(self):
            raise IndexError(f"no row {row} among {len(self)}")
        return self._flat[self._ends[row] : self._ends[row + 1]]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each text."""
        return np.diff(self._ends).tolist()

    def count_shared(self) -> int:
        """The number of tokens that all texts begin with, at least one less than each text has."""
        if not len(self):
            return 0
        first = self[0]
        shared = max(0, min(self.lengths) - 1)
        for row in self:
            differs = np.flatnonzero(row[:shared] != first[:shared])
            shared = int(differs[0]) if differs.size else shared
        return shared
