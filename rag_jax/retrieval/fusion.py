"""Fusion: one ranking made of several searchers' rankings."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import build
from rag_jax.retrieval.searcher import Found, Searcher, check_count, check_found
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import FusionConfig


class Fused:
    """A search by several searchers over the same corpus, of which each passage has one score.

    By "ranks" it is reciprocal-rank fusion (Cormack et al. 2009): the sum of `w / (60 + rank)` over
    the searchers that found the passage, with ranks from 1 and a weight for each searcher.

    By "scores" it is the sum of `w * (s - low) / (high - low)`, with the question's smallest and
    largest score of the searcher among the passages that it found. A passage that a searcher does
    not find adds 0, as the last one found does, which is why scores are not normalised to their
    mean and deviation: there a passage that is not found has no value of its own, and the mean is
    that of an arbitrary depth. Bruch et al. (2023, arXiv 2210.11934) compare both and
    find the weighted sum robust to the choice. If all scores are equal, each counts as 1.

    Sums are rounded once, so that they do not depend on the order of the searchers, and equal ones
    are in the order of the rows.
    """

    def __init__(self, searchers: Sequence[Searcher], settings: FusionConfig = FusionConfig()):
        """A search by some searchers.

        Args:
            settings: `depth` passages of each searcher are fused, and at least `k`.

        Raises:
            RagJaxError: there are no searchers, their corpora differ in size, there is not one
                weight for each, or a setting has a value that it cannot have.
        """
        self.searchers = tuple(searchers)
        self.settings = build(FusionConfig, vars(settings), path="settings")
        if len(sizes := {searcher.size for searcher in self.searchers}) != 1:
            raise RagJaxError(
                f"searchers are over {sorted(sizes) or 'no'} passages: fuse those of one corpus"
            )
        (self.size,) = sizes
        weights = self.settings.weights or (1.0,) * len(self.searchers)
        if len(weights) != len(self.searchers):
            raise RagJaxError(
                f"settings.weights={self.settings.weights}: must be one for each of "
                f"{len(self.searchers)} searchers, or none"
            )
        self._weights = weights

    def search(self, questions: Sequence[str], k: int) -> Found:
        """The at most `k` passages with the largest sums for each question, largest first.

        Raises:
            RagJaxError: `k` is not from 1 to `size`, a searcher found what is not in the corpus, or
                as the searchers' own `search`.
        """
        check_count(k, self.size)
        depth = min(max(k, self.settings.depth), self.size)
        found = [searcher.search(questions, depth) for searcher in self.searchers]
        for number, (searcher, ranked) in enumerate(zip(self.searchers, found, strict=True)):
            name = f"searcher {number} ({type(searcher).__name__})"
            check_found(ranked, len(questions), self.size, name)
        best = [self._fuse(found, place, k) for place in range(len(questions))]
        return [scores for scores, _ in best], [rows for _, rows in best]

    def _fuse(
        self, found: Sequence[Found], place: int, k: int
    ) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """The fused ranking of the question at one place."""
        parts: dict[int, list[float]] = {}
        for weight, (scores, rows) in zip(self._weights, found, strict=True):
            values = self._rate(np.asarray(scores[place], np.float64).tolist())
            for row, value in zip(np.asarray(rows[place]).tolist(), values, strict=True):
                parts.setdefault(row, []).append(weight * value)
        sums = {row: math.fsum(own) for row, own in parts.items()}
        rows = sorted(sums, key=lambda row: (-sums[row], row))[:k]
        return np.asarray([sums[row] for row in rows], np.float32), np.asarray(rows, np.int32)

    def _rate(self, scores: Sequence[float]) -> Iterator[float]:
        """What each passage of one searcher's ranking adds, before its weight."""
        for rank, score in enumerate(scores, 1):
            if self.settings.by == "ranks":
                yield 1 / (self.settings.constant + rank)
            else:
                low, high = scores[-1], scores[0]
                yield (score - low) / (high - low) if high > low else 1.0
