"""Which passages each training step reads, found as the question's encoder is trained."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.batches import round_up
from rag_jax.data.questions import Collection
from rag_jax.pipeline.stage import open_to_append, read_whole_lines
from rag_jax.retrieval.encode import PIECE, embed_batch
from rag_jax.retrieval.index import Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, save_rows, to_json
from rag_jax.runtime.hosts import fetch, wait_for_all
from rag_jax.runtime.sharding import count_data_rows, shard_batch

if TYPE_CHECKING:
    from rag_jax.systems.rag.pipeline import Session

# Steps whose retrieved passages count for the entropy that tells a collapse.
WINDOW = 8


class Lookup:
    """Which passages each step reads, as the question's encoder finds them just before.

    A step's passages are searched while the device computes the step before, by the encoder as it
    was then: they only choose what is read, and `p(z|x)` is computed within the step. They are
    written down, so that a run that stopped goes on with the very same.

    Args:
        questions_at: gives the numbers of a step's questions.
        queries: tokens of every question.
    """

    def __init__(
        self,
        session: "Session",
        folder: Path,
        corpus: Collection,
        index: Index,
        questions_at: Callable[[int], list[int]],
        queries: Sequence[Sequence[int]],
    ):
        self._session, self._folder, self._corpus = session, folder, corpus
        self._questions_at, self._queries = questions_at, queries
        self._index, self._refreshed = index, 0
        limit = session.encoder.config.max_length
        self.width = min(round_up(max(map(len, queries)), 16), limit)  # that queries are padded to
        self._path = folder / "found.jsonl"
        records, sizes = read_whole_lines(self._path)
        self._rows, self._size = {r["step"]: r["rows"] for r in records}, sum(sizes)
        wait_for_all(f"{self._path} was read")

    def embed(self, step: int, params: Any) -> Float[jax.Array, "B E"]:
        """The embeddings of a step's questions, which need not be waited for."""
        rows = [self._queries[i] for i in self._questions_at(step)]
        count = round_up(self._session.config.train.batch_size, count_data_rows())
        tokens, lengths = np.zeros((count, self.width), np.int32), np.ones(count, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], lengths[i] = row, len(row)
        return embed_batch(self._session.encoder.model, params, *shard_batch((tokens, lengths)))

    def search(self, step: int, queries: Float[jax.Array, "B E"]) -> None:
        """Finds a step's passages and writes them down."""
        if step in self._rows:
            return
        count = len(self._questions_at(step))
        index = self._find_index(step)
        _, rows = index.search(fetch(queries)[:count], self._session.config.passages)
        self._rows[step] = rows
        line = (to_json({"step": step, "rows": rows.tolist()}) + "\n").encode()
        with open_to_append(self._path, self._size) as append:
            append(line)
        self._size += len(line)

    def refresh(self, step: int, params: Any) -> None:
        """Encodes all passages anew, for this step and those after it."""
        path = self._folder / f"passages-{step}.npy"
        if path.exists():
            return
        encoder = dataclasses.replace(self._session.encoder, params=params)
        passages = self._corpus.passages
        shards = (passages[start : start + PIECE] for start in range(0, len(passages), PIECE))
        made = (self._session.encode_passages(encoder, shard) for shard in shards)
        save_rows(path, made, len(passages))
        wait_for_all(f"{path} was written")

    def find(self, step: int) -> tuple[Int[np.ndarray, "B K"], Float[np.ndarray, "B K E"]]:
        """A step's passages: their rows in the corpus and their embeddings.

        Raises:
            RagJaxError: they were not written down.
        """
        if step not in self._rows:
            raise RagJaxError(
                f"{self._path} has no line for step {step}: remove {self._folder} to train anew"
            )
        rows = np.asarray(self._rows[step], np.int32)
        return rows, self._find_index(step).embeddings[rows]

    def measure_entropy(self, step: int) -> float:
        """How spread the passages of the last steps are: entropy over its largest value."""
        first = max(0, step + 1 - WINDOW)
        seen = np.concatenate([np.ravel(self._rows[s]) for s in range(first, step + 1)])
        shares = np.unique(seen, return_counts=True)[1] / seen.size
        return float(-(shares * np.log(shares)).sum() / max(np.log(seen.size), 1e-9))

    def _find_index(self, step: int) -> Index:
        """The index that holds at a step: as it was made, or as last refreshed."""
        every = self._session.config.train.refresh_every
        at = step // every * every if every else 0
        if at != self._refreshed:
            self._index = load_refreshed(self._session, self._folder, at)
            self._refreshed = at
        return self._index


def load_refreshed(session: "Session", folder: Path, step: int) -> Index:
    """The index of the passages as the question's encoder saw them at a step."""
    embeddings = map_array(folder / f"passages-{step}.npy")
    return Index.build(embeddings, backend=session.config.index.backend, encoder=f"step {step}")
