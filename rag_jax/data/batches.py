"""Batches of fixed shapes whose order is a pure function of the seed and the step.

Examples are grouped by length into buckets, so a program is compiled once for each bucket and not
for each length. Nothing is remembered between steps: to resume, ask for the next step.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class Microbatch:
    """Examples that are computed together, all of one kind.

    `indices` point into the lengths the plan was made from; there are at most `rows` of them, and
    what is missing is padding that must not count. `width` is what each example is padded to.
    """

    kind: str
    indices: list[int]
    rows: int
    width: int


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Deals examples into batches, each example once an epoch, and batches into microbatches.

    A batch's examples are spread over microbatches by length, so nothing is padded to the longest
    of its batch; a microbatch's shape depends on its kind and width alone.

    Args:
      lengths: length of every example, in tokens.
      kinds: examples of different kinds never share a microbatch.
      strata: every batch gets its even share of each stratum. With a dozen steps an epoch, a batch
        of one class alone would pull that class's probability far to one side.
      batch_size: examples of a batch, which the last batches may miss by one.
      budget: tokens of a microbatch, except where `row_multiple` examples have more.
      program_tokens: see `choose_widths`.
      seed: decides the order; every epoch has its own.
      row_multiple: what the rows of a microbatch are a multiple of, so that a mesh divides them.

    Raises:
      RagJaxError: if a setting is out of range, or there are no examples.
    """

    lengths: Sequence[int]
    _: dataclasses.KW_ONLY
    kinds: Sequence[str]
    strata: Sequence[int]
    batch_size: int
    budget: int
    program_tokens: int
    seed: int
    row_multiple: int = 1

    def __post_init__(self) -> None:
        if not len(self.lengths):
            raise RagJaxError("lengths: there are no examples to make batches of")
        if not len(self.lengths) == len(self.kinds) == len(self.strata):
            raise ValueError("every example has a length, a kind and a stratum")
        for name in ("batch_size", "budget", "program_tokens", "seed", "row_multiple"):
            if getattr(self, name) < (name not in ("program_tokens", "seed")):
                raise RagJaxError(f"{name}={getattr(self, name)}: is too small")

    @functools.cached_property
    def widths(self) -> dict[str, list[int]]:
        """The widths of each kind."""
        members = {kind: [] for kind in self.kinds}
        for kind, length in zip(self.kinds, self.lengths, strict=True):
            members[kind].append(length)
        return {
            kind: choose_widths(lengths, program_tokens=self.program_tokens)
            for kind, lengths in members.items()
        }

    @property
    def num_steps_per_epoch(self) -> int:
        """Number of batches that hold every example once."""
        return -(-len(self.lengths) // self.batch_size)

    def examples_at(self, step: int) -> list[int]:
        """The examples of `step`, which counts from 0 through all epochs.

        The same in every process: microbatches differ in shape, and all processes of a run have
        to run the same programs. Each then feeds its own rows of every microbatch to its devices.
        """
        if step < 0:
            raise ValueError(f"no step {step}")
        epoch, place = divmod(step, self.num_steps_per_epoch)
        rng = np.random.default_rng((self.seed, epoch))
        strata = np.asarray(self.strata)
        position = np.empty(len(strata))
        for stratum in np.unique(strata):
            members = rng.permutation(np.flatnonzero(strata == stratum))
            position[members] = (np.arange(len(members)) + rng.random()) / len(members)
        batches = np.array_split(np.argsort(position, kind="stable"), self.num_steps_per_epoch)
        batch = batches[rng.permutation(len(batches))[place]]
        return batch.tolist()

    def place(self, example: int) -> tuple[str, int]:
        """The kind and width of the microbatches that an example goes into."""
        kind = self.kinds[example]
        return kind, choose_bucket(self.lengths[example], self.widths[kind])

    def group(self, examples: Sequence[int]) -> list[Microbatch]:
        """Microbatches of some examples."""
        members: dict[tuple[str, int], list[int]] = {}
        for i in examples:
            members.setdefault(self.place(i), []).append(i)
        groups = []
        for (kind, width), indices in sorted(members.items()):
            rows = max(1, self.budget // width // self.row_multiple) * self.row_multiple
            groups += [
                Microbatch(kind, indices[start : start + rows], rows, width)
                for start in range(0, len(indices), rows)
            ]
        return groups


def choose_bucket(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds `length`.

    Raises:
      RagJaxError: if none does.
    """
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise RagJaxError(f"buckets={list(buckets)}: none holds {length} tokens; add a bucket")
    return min(fitting)


def choose_widths(lengths: Sequence[int], *, program_tokens: int) -> list[int]:
    """Returns the widths, multiples of 8, at which padding and compiling together cost least.

    Dynamic programming: the best choice for the rows that fit into one width ends with that width
    and begins with the best choice for the rows that fit into some narrower one.

    Args:
      lengths: length of every row.
      program_tokens: how many tokens could be computed while one program compiles.
    """
    if not len(lengths):
        return []
    best = [(0, 0, [])]  # number of rows that fit, cost in tokens, widths
    for width in range(8, round_up(max(lengths), 8) + 8, 8):
        fit = sum(length <= width for length in lengths)
        cost, widths = min((cost - width * fits, widths) for fits, cost, widths in best)
        best.append((fit, cost + width * fit + program_tokens, [*widths, width]))
    return best[-1][2]


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
