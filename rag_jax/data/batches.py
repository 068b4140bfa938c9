"""Batches of examples in an order that is a pure function of the seed and the step; widths of rows.

The batches keep no state between steps: resuming only needs the step number.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int

from rag_jax.runtime.errors import RagJaxError

# Share of padding that more widths than a program's worth allows are chosen to avoid: a fifth, less
# what other batches have more than those looked at. And the largest number of those widths.
MOST_PADDING, MOST_WIDTHS = 0.18, 6

_Choice = TypeVar("_Choice")


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Assignment of examples to the batches of a training's steps, each example once per epoch.

    Args:
        strata: stratum of every example. Every batch gets an even share of each stratum: with a
            dozen steps per epoch, a batch of a single class would pull the probability of that
            class far to one side.
        batch_size: maximum number of examples per batch. Batches differ by at most one example.
        seed: seed of the order, which differs between epochs.

    Raises:
        RagJaxError: if a setting is out of range, or there are no examples.
    """

    strata: Sequence[int]
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int
    # The batches of the last epoch that was asked for: a step then costs what its batch costs.
    _kept: dict[int, list[np.ndarray]] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not len(self.strata):
            raise RagJaxError("strata: there are no examples to make batches of")
        for name, minimum in (("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < minimum:
                raise RagJaxError(f"{name}={value}: must be at least {minimum}")

    @property
    def num_steps_per_epoch(self) -> int:
        """Number of batches that contain every example once."""
        return -(-len(self.strata) // self.batch_size)

    def examples_at(self, step: int) -> list[int]:
        """Returns the indices of the examples of one step, counted from 0 through all epochs.

        The result is the same in every process: all processes of a run must run the same programs.
        Each process then feeds only its own rows of every microbatch to its devices.

        Raises:
            ValueError: if `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step={step}: must not be negative")
        epoch, step_in_epoch = divmod(step, self.num_steps_per_epoch)
        batches = self._kept.get(epoch)
        if batches is None:
            batches = self._deal(epoch)
            self._kept.clear()
            self._kept[epoch] = batches
        return batches[step_in_epoch].tolist()

    def _deal(self, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, in order."""
        rng = np.random.default_rng((self.seed, epoch))
        strata = np.asarray(self.strata)
        # The members of a stratum get evenly spaced positions in [0, 1), in random order and with a
        # random offset, so that any range of positions holds an even share of the stratum.
        position = np.empty(len(strata))
        for stratum in np.unique(strata):
            members = rng.permutation(np.flatnonzero(strata == stratum))
            position[members] = (np.arange(len(members)) + rng.random()) / len(members)
        batches = np.array_split(np.argsort(position, kind="stable"), self.num_steps_per_epoch)
        return [batches[i] for i in rng.permutation(len(batches))]


def choose_bucket(length: int, buckets: Sequence[int]) -> int:
    """Returns the smallest bucket that holds `length` tokens; a RagJaxError if there is none."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise RagJaxError(f"buckets={list(buckets)}: none holds {length} tokens; add a bucket")
    return min(fitting)


def choose_widths(lengths: Sequence[int], *, program_tokens: int) -> list[int]:
    """Returns the widths, ascending multiples of 8, with the least cost of padding and compiling.

    Solved by dynamic programming: the best choice for the rows that fit into one width consists of
    this width and the best choice for the rows that fit into some narrower width.

    Args:
        lengths: length of every row, in tokens.
        program_tokens: number of tokens that could be computed while one program compiles.
    """
    if not len(lengths):
        return []
    ordered = np.sort(np.asarray(lengths))
    best = [(0, 0, [])]  # number of rows that fit, cost in tokens, widths
    for width in range(8, round_up(int(ordered[-1]), 8) + 8, 8):
        num_fitting = int(np.searchsorted(ordered, width, side="right"))
        cost, widths = min((cost - width * fitting, widths) for fitting, cost, widths in best)
        best.append((num_fitting, cost + width * num_fitting + program_tokens, [*widths, width]))
    return best[-1][2]


def limit_padding(
    choose: Callable[[int], tuple[_Choice, int, float]], program_tokens: int
) -> _Choice:
    """The widths that a program's worth gives, or more of them where too much would be padding.

    Args:
        choose: from what a program is worth to widths, as of `choose_widths`, their number, and the
            share of padding with them.
    """
    chosen, _, padding = choose(program_tokens)
    while padding > MOST_PADDING and program_tokens:
        program_tokens = 3 * program_tokens // 4
        more, count, padding = choose(program_tokens)
        if count > MOST_WIDTHS:
            break
        chosen = more
    return chosen


def round_up(length: int, multiple: int) -> int:
    """Returns the smallest positive multiple of `multiple` that is at least `length`."""
    return max(1, -(-length // multiple)) * multiple


def double_up(length: int, multiple: int) -> int:
    """As `round_up`, of the next power of two: few sizes, whatever the lengths."""
    return round_up(1 << (length - 1).bit_length(), multiple)


def list_widths(limit: int) -> list[int]:
    """Numbers of tokens to pad to where the texts are not known: 32, doubled up to `limit`."""
    widths, width = [], 32
    while width < limit:
        widths, width = [*widths, width], 2 * width
    return [*widths, limit]


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, *, pad_id: int, batch: int | None = None
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Pads rows of token ids on the right, to `length` (T) each, and adds rows of padding.

    Args:
        batch: B, the number of rows to return. None adds no rows.

    Returns:
        Token ids (int32) and `token_mask`, True on tokens that are not padding.

    Raises:
        RagJaxError: if a row is longer than `length`, or there are more rows than `batch`.
    """
    size = len(rows) if batch is None else batch
    if len(rows) > size:
        raise RagJaxError(f"batch={size}: there are {len(rows)} rows")
    if too_long := [i for i, row in enumerate(rows) if len(row) > length]:
        raise RagJaxError(
            f"length={length}: {len(too_long)} of {len(rows)} rows are longer, first row "
            f"{too_long[0]} of {len(rows[too_long[0]])} tokens"
        )
    tokens = np.full((size, length), pad_id, np.int32)
    token_mask = np.zeros((size, length), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        token_mask[i, : len(row)] = True
    return tokens, token_mask
