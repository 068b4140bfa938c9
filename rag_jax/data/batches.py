"""Batches of fixed shapes whose order is a pure function of the seed, the step and the process.

Examples are grouped by length into buckets, so a program is compiled once for each bucket and not
for each length. Nothing is remembered between steps: to resume, ask for the next step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from rag_jax.errors import RagJaxError


@dataclass(frozen=True)
class Batch:
    """The rows of one process in one step.

    `indices` point into the lengths the plan was made from; rows that are not `valid` repeat others
    and must not count. All processes have the same `length`, the bucket to pad to.
    """

    indices: Int[np.ndarray, " B"]
    valid: Bool[np.ndarray, " B"]
    length: int


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Deals examples into batches, each example once an epoch.

    Args:
      lengths: length of every example, in whatever unit the buckets are.
      buckets: allowed padded lengths, increasing.
      batch_size: rows of a batch over all processes.
      seed: decides the order; every epoch has its own.
      processes: number of processes a batch is divided among, in order of their rows.

    Raises:
      RagJaxError: if a setting is out of range or an example is longer than the largest bucket.
    """

    lengths: Sequence[int]
    _: dataclasses.KW_ONLY
    buckets: Sequence[int]
    batch_size: int
    seed: int
    processes: int = 1

    def __post_init__(self) -> None:
        lengths, buckets = np.asarray(self.lengths), list(self.buckets)
        if lengths.ndim != 1 or not lengths.size:
            raise RagJaxError("lengths: there are no examples to make batches of")
        if not buckets or buckets != sorted(set(buckets)) or buckets[0] < 1:
            raise RagJaxError(f"buckets={buckets}: must be positive and increasing")
        if self.processes < 1 or self.batch_size < 1 or self.batch_size % self.processes:
            raise RagJaxError(
                f"batch_size={self.batch_size}: must be a positive multiple of "
                f"processes={self.processes}"
            )
        if self.seed < 0:
            raise RagJaxError(f"seed={self.seed}: must not be negative")
        long = np.flatnonzero(lengths > buckets[-1])
        if long.size:
            raise RagJaxError(
                f"buckets={buckets}: {long.size} of {lengths.size} examples are longer than the "
                f"largest, first example {long[0]} of length {lengths[long[0]]}; add a bucket"
            )

    @functools.cached_property
    def _members(self) -> list[tuple[int, Int[np.ndarray, " N"]]]:
        """The buckets that have examples, and their examples in ascending order."""
        which = np.searchsorted(np.asarray(self.buckets), np.asarray(self.lengths))
        members = ((int(b), np.flatnonzero(which == i)) for i, b in enumerate(self.buckets))
        return [(bucket, rows) for bucket, rows in members if rows.size]

    @functools.cached_property
    def num_steps_per_epoch(self) -> int:
        """Number of batches that hold every example once."""
        return sum(-(-rows.size // self.batch_size) for _, rows in self._members)

    def batch_at(self, step: int, process: int = 0) -> Batch:
        """Returns the rows of `process` at `step`, which counts from 0 through all epochs."""
        if step < 0 or not 0 <= process < self.processes:
            raise ValueError(f"no step {step} of process {process}")
        epoch, place = divmod(step, self.num_steps_per_epoch)
        batch = _deal_epoch(self, epoch)[place]
        local = self.batch_size // self.processes
        rows = slice(process * local, (process + 1) * local)
        return Batch(batch.indices[rows], batch.valid[rows], batch.length)


# Steps are asked for in order, so the present epoch (of a few plans) is all that is worth keeping.
@functools.lru_cache(maxsize=8)
def _deal_epoch(plan: BatchPlan, epoch: int) -> list[Batch]:
    rng = np.random.default_rng((plan.seed, epoch))
    batches = []
    for bucket, members in plan._members:
        order = rng.permutation(members)
        for start in range(0, order.size, plan.batch_size):
            rows = order[start : start + plan.batch_size]
            indices = np.resize(rows, plan.batch_size).astype(np.int32)  # repeats from the front
            batches.append(Batch(indices, np.arange(plan.batch_size) < rows.size, bucket))
    return [batches[i] for i in rng.permutation(len(batches))]


def choose_bucket(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds `length`.

    Raises:
      RagJaxError: if none does.
    """
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise RagJaxError(f"buckets={list(buckets)}: none holds {length} tokens; add a bucket")
    return min(fitting)


def round_up(length: int, multiple: int) -> int:
    """The smallest positive multiple that holds `length`: a bucket where there is no list."""
    return max(1, -(-length // multiple)) * multiple


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, *, pad_id: int, batch: int | None = None
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Pads rows of token ids on the right.

    Args:
      rows: token ids of each row.
      length: T, to which each row is padded.
      pad_id: fills what is left.
      batch: B, filled up with empty rows; the number of rows if None.

    Returns:
      Tokens (int32) and a mask that is true where a token is a row's own.

    Raises:
      RagJaxError: if a row is longer than `length`, or there are more rows than `batch`.
    """
    size = len(rows) if batch is None else batch
    if len(rows) > size:
        raise RagJaxError(f"batch={size}: there are {len(rows)} rows")
    long = [i for i, row in enumerate(rows) if len(row) > length]
    if long:
        raise RagJaxError(
            f"length={length}: {len(long)} of {len(rows)} rows are longer, first row {long[0]} of "
            f"{len(rows[long[0]])} tokens"
        )
    tokens = np.full((size, length), pad_id, np.int32)
    mask = np.zeros((size, length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask
