"""DPR's validation: the average rank of each question's passage in a pool, and the best epoch.

The pool has the first relevant passage of every question and some wrong passages of each
(`validate_average_rank` in DPR's train_dense_encoder.py). A question's rank is the number of
passages of the pool that score above its own, so the best average is 0. Of other passages that
score as its own does half count, as in a list whose equals stand in any order: an encoder that
tells nothing apart is no good one.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.retrieval.pairs import Pair
from rag_jax.retrieval.texts import list_texts
from rag_jax.runtime.checkpoint import load_tree, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import append_line, read_lines, to_json
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.outside import parsing

_TOGETHER = 64  # questions whose scores are in memory at once


@dataclass(frozen=True)
class Pool:
    """The questions that are validated, and the passages among which theirs are ranked.

    Attributes:
        questions: `Q` texts.
        rows: rows of the `P` distinct passages in the corpus.
        counts: how often each of them is in the pool: a passage may be several questions'.
        positives: place of each question's passage in `rows`.
    """

    questions: Sequence[str]
    rows: Int[np.ndarray, "P"]
    counts: Int[np.ndarray, "P"]
    positives: Int[np.ndarray, "Q"]


def make_pool(pairs: Sequence[Pair], questions: Sequence[Question]) -> Pool:
    """The pool of some questions, of which each pair names one, its passage and its negatives."""
    listed = [row for pair in pairs for row in (pair.positive, *pair.negatives)]
    rows, counts = np.unique(np.asarray(listed, int), return_counts=True)
    positives = np.searchsorted(rows, [pair.positive for pair in pairs])
    return Pool([questions[pair.question].question for pair in pairs], rows, counts, positives)


def average_rank(
    queries: Float[np.ndarray, "Q E"],
    candidates: Float[np.ndarray, "P E"],
    counts: Int[np.ndarray, "P"],
    positives: Int[np.ndarray, "Q"],
) -> float:
    """The mean over the questions of the number of passages that score above their own.

    Half counts of other passages that score as theirs.

    Raises:
        RagJaxError: a score is not finite.
    """
    above = 0.0
    for start in range(0, len(queries), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        scores = queries[part] @ candidates.T
        own = np.take_along_axis(scores, positives[part, None], axis=1)
        if not np.isfinite(scores).all():
            raise RagJaxError(
                "validation: the encoders' embeddings are not finite; a lower learning rate may "
                "help"
            )
        equal = (scores == own) @ counts - counts[positives[part]]
        above += float(((scores > own) @ counts + equal / 2).sum())
    return above / len(queries)


def measure_rank(
    encoders: Encoders,
    pool: Pool,
    passages: Sequence[Passage],
    encode: Callable[..., Float[np.ndarray, "N E"]],
) -> float:
    """The average rank by a pair of encoders."""
    queries = encode(encoders.question, pool.questions, "query")
    texts = list_texts([passages[row] for row in pool.rows.tolist()])
    candidates = encode(encoders.passage, texts, "document")
    return average_rank(queries, candidates, pool.counts, pool.positives)


class BestEpoch:
    """A hook of the training loop (see `fit`) that validates epochs and keeps the best one's tree.

    `validation.jsonl` has a line for each epoch validated, and the trained tree of the best of them
    is the folder `epoch-N`; so a continued run validates no epoch again.

    Args:
        steps: number of steps of an epoch.
        after: number of epochs after which each further one is validated.
        measure: of the trained tree; the smallest value is the best.
    """

    def __init__(
        self, folder: Path, *, steps: int, after: int, measure: Callable[[PyTree[Array]], float]
    ):
        self._folder, self._steps, self._after, self._measure = folder, steps, after, measure
        self._path = folder / "validation.jsonl"
        records, self._size = read_lines(self._path)
        with parsing(self._path):
            self._ranks = {record["epoch"]: record["average_rank"] for record in records}
        wait_for_all(f"{self._path} was read")

    def before(self, step: int, params: PyTree[Array]) -> None:
        """Nothing is done before a step."""

    def after(self, step: int, params: PyTree[Array]) -> Mapping[str, Any]:
        """Validates the parameters after an epoch's last step."""
        epoch, rest = divmod(step + 1, self._steps)
        if rest or epoch <= self._after:
            return {}
        if epoch not in self._ranks:
            self._validate(epoch, params)
        return {"average_rank": self._ranks[epoch]}

    def _validate(self, epoch: int, params: PyTree[Array]) -> None:
        rank = self._measure(params)
        best = min(self._ranks.values(), default=math.inf)
        if rank < best:  # saved before it is written down, and the one before removed afterwards
            save_tree(self._name(epoch), params)
        line = to_json({"epoch": epoch, "average_rank": rank})
        self._size = append_line(self._path, self._size, f"{line}\n")
        old, self._ranks[epoch] = self.best, rank
        if rank < best and old is not None:
            self._remove(old)

    @property
    def best(self) -> int | None:
        """The epoch, from 1, with the smallest average rank, the first of equals; None at first."""
        return min(self._ranks, key=lambda epoch: (self._ranks[epoch], epoch), default=None)

    def load(self, abstract: PyTree) -> PyTree[Array]:
        """The best epoch's trained tree.

        Raises:
            RagJaxError: no epoch was validated, or as `load_tree`.
        """
        if self.best is None:
            raise RagJaxError(f"{self._path}: no epoch was validated; delete {self._folder}")
        return load_tree(self._name(self.best), abstract)

    def remove(self) -> None:
        """Removes the best epoch's tree, once it is saved elsewhere."""
        if self.best is not None:
            self._remove(self.best)

    def _name(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch}"

    def _remove(self, epoch: int) -> None:
        if is_first():
            shutil.rmtree(self._name(epoch), ignore_errors=True)
