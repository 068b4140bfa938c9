"""Which documents are trained together, and how their examples are padded."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rag_jax.data.batches import choose_bucket, choose_widths, round_up

MAX_PADDING = 0.15  # of all tokens computed


@dataclass(frozen=True)
class Groups:
    """Documents in groups of one size.

    Attributes:
        size: documents of a group; the last may have fewer, and is filled up.
        order: all documents, a group after the other.
        widths: for each group the tokens that each example is padded to.
        padding: share of the tokens computed that are no document's own.
    """

    size: int
    order: list[int]
    widths: list[list[int]]
    padding: float


def group_documents(
    lengths: Int[np.ndarray, "D E"], *, together: int, program_tokens: int, multiple: int = 1
) -> Groups:
    """Groups documents of about one length, at few widths, so that little is padding.

    A program is compiled for every width. Where the cheapest widths leave more than `MAX_PADDING`
    there are more widths, and then smaller groups, as far as that goes.

    Args:
        lengths: tokens of each of a document's examples.
        together: documents of a group at the most.
        program_tokens: as for `choose_widths`; of all documents of a group together.
        multiple: what a group's size is a multiple of, so that a mesh divides it.
    """
    order = np.argsort(lengths.sum(axis=1), kind="stable")
    best = None
    size = min(together, len(lengths))
    while True:
        tokens = program_tokens
        while best is None or best.padding >= MAX_PADDING:
            # Groups of nearly one size: a last one of a single document would be mostly filling.
            even = round_up(-(-len(order) // -(-len(order) // size)), multiple)
            made = _choose(lengths, order, size=even, program_tokens=tokens // even)
            if best is None or made.padding < best.padding:
                best = made
            if not tokens:
                break
            tokens //= 2
        if best.padding < MAX_PADDING or size <= multiple:
            return best
        size //= 2


def _choose(
    lengths: Int[np.ndarray, "D E"],
    order: Int[np.ndarray, "D"],
    *,
    size: int,
    program_tokens: int,
) -> Groups:
    starts = range(0, len(order), size)
    longest = [lengths[order[start : start + size]].max(axis=0).tolist() for start in starts]
    flat = [length for row in longest for length in row]
    buckets = choose_widths(flat, program_tokens=program_tokens)
    widths = [[choose_bucket(length, buckets) for length in row] for row in longest]
    padding = 1 - lengths.sum() / (size * np.sum(widths))
    return Groups(size, order.tolist(), widths, float(padding))
