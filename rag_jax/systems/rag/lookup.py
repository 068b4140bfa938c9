"""Which passages each training step reads, retrieved while the question's encoder is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.retrieval.encode import PIECE, embed_batch
from rag_jax.retrieval.index import Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import append_line, map_array, read_lines, save_rows, to_json
from rag_jax.runtime.hosts import fetch, wait_for_all
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_data_rows, shard_batch

# Number of steps whose retrieved passages count for the entropy that shows a collapse.
WINDOW = 8


def load_refreshed(folder: Path, step: int, like: Index) -> Index:
    """The index of the passages as the question's encoder of a step embedded them."""
    embeddings = map_array(folder / f"passages-{step}.npy")
    made = {"backend": like.backend, "storage": like.storage}
    return Index.build(embeddings, **made, encoder=f"step {step}")


@dataclass
class Lookup:
    """Retrieval as a hook of the training loop (see `fit`).

    A step's passages are searched while the device computes the step before, by the encoder as it
    was then. They only choose what is read: `p(z|x)` is computed within the step. The passages are
    written to `found.jsonl`, so a continued run reads the same ones.

    Attributes:
        encoder: of questions, before training.
        index: over the passages, before training.
        queries: tokens of every training question.
        count: number of passages K of a question.
        joint: whether the question's encoder is trained.
        refresh_every: number of steps between two encodings of the corpus by the question's
            encoder; 0 for none.
    """

    folder: Path
    encoder: Pretrained
    passages: Sequence[Passage]
    index: Index
    plan: BatchPlan
    queries: Sequence[Sequence[int]]
    count: int
    total_steps: int
    joint: bool
    refresh_every: int
    encode_passages: Callable[..., Float[np.ndarray, "N E"]]

    def __post_init__(self) -> None:
        self._refreshed, self._ahead, self._first_entropy = 0, None, None
        self._path = self.folder / "found.jsonl"
        records, self._size = read_lines(self._path)
        with parsing(self._path):
            self._rows = {record["step"]: np.asarray(record["rows"]) for record in records}
            for rows in self._rows.values():
                if rows.dtype.kind != "i" or rows.min() < 0 or rows.max() >= len(self.passages):
                    raise ValueError(f"a row is none of the {len(self.passages)} passages")
        wait_for_all(f"{self._path} was read")
        self.search(0, self.embed(0, self.encoder.params))

    @cached_property
    def width(self) -> int:
        """Number of tokens that questions are padded to."""
        return min(round_up(max(map(len, self.queries)), 16), self.encoder.config.max_length)

    # The hook.

    def before(self, step: int, params: PyTree[Array]) -> None:
        """Dispatches the embedding of the next step's questions."""
        self._ahead = self._embed_next(step, params)

    def after(self, step: int, params: PyTree[Array]) -> Mapping[str, Any]:
        """Refreshes the index if it is due, and searches the next step's passages."""
        following, every = step + 1, self.refresh_every
        if every and (following % every == 0 or following == self.total_steps):
            self.refresh(following, params["query"])
            self._ahead = self._embed_next(step, params)
        if self._ahead is not None:
            self.search(following, self._ahead)
        entropy = self.measure_entropy(step)
        self._warn_of_collapse(entropy, step)
        return {"retrieved_entropy": entropy}

    def _embed_next(self, step: int, params: PyTree[Array]) -> Float[Array, "B E"] | None:
        if step + 1 >= self.total_steps:
            return None
        return self.embed(step + 1, params["query"] if self.joint else self.encoder.params)

    # Its parts.

    def embed(self, step: int, params: PyTree[Array]) -> Float[Array, "B E"]:
        """The embeddings of a step's questions; dispatched, not waited for."""
        rows = [self.queries[i] for i in self.plan.examples_at(step)]
        count = round_up(self.plan.batch_size, count_data_rows())
        tokens, lengths = np.zeros((count, self.width), np.int32), np.ones(count, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], lengths[i] = row, len(row)
        return embed_batch(self.encoder.model, params, *shard_batch((tokens, lengths)))

    def expect(self, step: int) -> Int[np.ndarray, "B K"]:
        """The rows of the passages that a step would read if nothing were trained before it."""
        queries = self.embed(step, self.encoder.params)
        return self._search(self._find_index(0), step, queries)

    def _search(
        self, index: Index, step: int, queries: Float[Array, "B E"]
    ) -> Int[np.ndarray, "B K"]:
        count = len(self.plan.examples_at(step))
        return index.search(fetch(queries)[:count], self.count)[1]

    def search(self, step: int, queries: Float[Array, "B E"]) -> None:
        """Searches a step's passages and writes them down."""
        if step in self._rows:
            return
        rows = self._search(self._find_index(step), step, queries)
        self._rows[step] = rows
        line = to_json({"step": step, "rows": rows.tolist()})
        self._size = append_line(self._path, self._size, f"{line}\n")

    def refresh(self, step: int, params: PyTree[Array]) -> None:
        """Embeds all passages by the question's encoder, for this step and those after it."""
        path = self.folder / f"passages-{step}.npy"
        if path.exists():
            return
        encoder, passages = replace(self.encoder, params=params), self.passages
        pieces = (passages[start : start + PIECE] for start in range(0, len(passages), PIECE))
        embedded = (self.encode_passages(encoder, piece) for piece in pieces)
        save_rows(path, embedded, len(passages))
        wait_for_all(f"{path} was written")

    def find(self, step: int) -> tuple[Int[np.ndarray, "B K"], Float[np.ndarray, "B K E"]]:
        """A step's passages: their rows in the corpus and their embeddings.

        Raises:
            RagJaxError: the step's passages were not written down.
        """
        if step not in self._rows:
            raise RagJaxError(
                f"{self._path} has no line for step {step}: delete {self.folder} to train anew"
            )
        rows = np.asarray(self._rows[step], np.int32)
        return rows, self._find_index(step).stored.take(rows)

    def measure_entropy(self, step: int) -> float:
        """The entropy of the passages of the last steps, as a share of its largest value."""
        first = max(0, step + 1 - WINDOW)
        rows = np.concatenate([np.ravel(self._rows[s]) for s in range(first, step + 1)])
        shares = np.unique(rows, return_counts=True)[1] / rows.size
        return float(-(shares * np.log(shares)).sum() / max(np.log(rows.size), 1e-9))

    def _find_index(self, step: int) -> Index:
        """The index at a step: as before training, or as last refreshed."""
        every = self.refresh_every
        at = step // every * every if every else 0
        if at != self._refreshed:
            self.index = load_refreshed(self.folder, at, self.index)
            self._refreshed = at
        return self.index

    def _warn_of_collapse(self, entropy: float, step: int) -> None:
        """Warns once if all questions get the same passages (Lewis et al. 2020, appendix H)."""
        if step < WINDOW:
            self._first_entropy = entropy
        elif self._first_entropy is not None and entropy < self._first_entropy / 2:
            log(
                f"warning: at step {step} the retrieved passages' entropy is {entropy:.2f} of its "
                f"largest value, at first {self._first_entropy:.2f}: the retriever may be "
                "collapsing; a lower train.retriever_rate may help"
            )
            self._first_entropy = None
