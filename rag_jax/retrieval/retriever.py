"""Questions to passages, from a corpus that can be swapped; and working ahead in the background."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int

from rag_jax.errors import RagJaxError
from rag_jax.retrieval.index import Index

Item = TypeVar("Item")
_END = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a search found, best first.

    Attributes:
        scores: dot products with the queries as they were encoded for the search.
        rows: int32, in the index searched.
        embeddings: of the passages. `p(z|x)` is the softmax of their dot products with the query
            (Lewis et al. 2020, section 2.2), computed where gradients are to reach the query's
            encoder.
        passages: the passages themselves.
    """

    scores: Float[np.ndarray, "Q K"]
    rows: Int[np.ndarray, "Q K"]
    embeddings: Float[np.ndarray, "Q K D"]
    passages: list[list[Any]]


class Retriever:
    """An index, the passages behind its rows, and the encoder of questions.

    The encoder may change between searches, as it does in training: `encode` is called anew each
    time. So may the corpus: `swap` puts another index and its passages in place between two
    searches, and where the two indices' sizes are rounded up to the same (`searchers.place_exact`)
    nothing is compiled.
    """

    def __init__(
        self,
        index: Index,
        passages: Sequence[Any],
        encode: Callable[[Sequence[str]], Float[np.ndarray, "Q D"]],
    ):
        """Args:
            passages: one for each row of the index, of any kind.
            encode: questions to embeddings.

        Raises:
            RagJaxError: there are not as many passages as rows.
        """
        self._encode = encode
        self.swap(index, passages)

    @property
    def index(self) -> Index:
        """The index in place."""
        return self._corpus[0]

    def swap(self, index: Index, passages: Sequence[Any]) -> None:
        """Puts another index and its passages in place; a search under way ends with the old.

        Raises:
            RagJaxError: there are not as many passages as rows.
        """
        if len(passages) != index.size:
            raise RagJaxError(
                f"the index has {index.size} rows, but there are {len(passages)} passages: "
                "give the passages it was built over"
            )
        # One assignment: a search in another thread sees an index with its own passages.
        self._corpus = index, passages

    def search(self, questions: Sequence[str], k: int) -> Found:
        """The `k` best passages for each question.

        Raises:
            RagJaxError: as `Index.search` does.
        """
        index, passages = self._corpus
        scores, rows = index.search(self._encode(questions), k)
        found = [[passages[row] for row in ranked] for ranked in rows.tolist()]
        return Found(scores, rows, index.embeddings[rows], found)


def prefetch(items: Iterable[Item], depth: int = 1) -> Iterator[Item]:
    """Yields items in their order while a thread makes the next ones.

    With a search within `items`, searching for batch i + 1 overlaps with the device's step on
    batch i. That search then encodes its questions with the weights from before step i, or from
    up to `depth` steps before: this is harmless where they only choose which passages come, and
    `p(z|x)` is computed from `Found.embeddings` within the step, with its own weights.

    On a mesh of several devices there is no thread, and items are made when they are asked for:
    programs launched by two threads may reach the devices in different orders, and then those
    with collectives wait for each other forever.

    An error in making an item is raised in its place. The thread ends with the iteration, at the
    latest after the item in the making.

    Args:
        items: made one at a time.
        depth: items made ahead, at least 1.

    Raises:
        RagJaxError: `depth` is less than 1.
    """
    if depth < 1:
        raise RagJaxError(f"depth is {depth}: it must be at least 1")
    if jax.sharding.get_mesh().size > 1:
        return iter(items)
    return _prefetch(iter(items), depth)


def _prefetch(items: Iterator[Item], depth: int) -> Iterator[Item]:
    thread = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
    try:
        ahead = collections.deque(thread.submit(next, items, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(thread.submit(next, items, _END))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
