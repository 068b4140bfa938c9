"""Which examples share a sequence, so that little of what is computed is padding.

Training programs have fixed shapes, and examples have any length. Instead of a row for each example
and a program for each of many widths, the examples of a step are packed into sequences, several to
a sequence, and the sequences into microbatches of few shapes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rag_jax.data.batches import choose_widths, round_up
from rag_jax.runtime.errors import RagJaxError

_WIDEST = 8  # widest sequence that is tried, as a multiple of the longest example
_LANES = 8  # widths and numbers of targets are multiples of this
# Room for target tokens in a sequence, as a multiple of what its tokens have on average; more on a
# mesh, where one sequence too many is as many as the mesh has data rows.
_SLACK, _MESH_SLACK = 1.25, 1.5
# On a mesh: numbers of sequences that are tried, as multiples of the mesh's data rows, and room in
# these sequences, as multiples of what a step of average size fills.
_TIMES, _ROOMS = 4, (1.06, 1.12, 1.2, 1.3)
_HALVINGS = 2  # of the number of sequences, for the last microbatch of a step


class Size(NamedTuple):
    """Numbers of an example's tokens, and of those that are targets."""

    tokens: int
    targets: int


class Microbatch(NamedTuple):
    """Examples that are computed in one call.

    Attributes:
        sequences: the examples of each sequence; at most `rows` sequences.
        rows: number of sequences of the arrays. Those past the last are padding.
        width: number of tokens that a sequence is padded to.
        kind: of the examples.
    """

    sequences: list[list[int]]
    rows: int
    width: int
    kind: str = ""


class Shapes(NamedTuple):
    """The shapes of microbatches: of several widths, or of several numbers of sequences.

    Attributes:
        widths: numbers of tokens of a sequence that there are programs for, ascending.
        rows: numbers of sequences that there are programs for, ascending.
        room: largest number of tokens of the examples that share a sequence.
        targets: number of target tokens of a sequence, P.
        items: largest number of examples in a sequence.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    room: int
    targets: int
    items: int


def choose_shapes(
    batches: Sequence[Sequence[Size]],
    *,
    largest: Size,
    budget: int,
    steps: int,
    slot_cost: float,
    program_tokens: int,
    multiple: int = 1,
) -> Shapes:
    """The shapes with the least work on some steps.

    A wider sequence has less padding at its end, and more of the attention between examples that is
    masked. Where a microbatch holds a single sequence, there are several widths, for what is left
    of a step.

    Args:
        batches: the sizes of the examples of some steps.
        largest: what no example of any step exceeds.
        budget: maximum number of tokens of a microbatch, unless one example in each of `multiple`
            sequences has more.
        steps: number of all steps.
        slot_cost: operations of attention for one slot, as a share of a token's others.
        program_tokens: number of tokens that could be computed while one program compiles.
        multiple: divisor of the number of sequences, so that a mesh divides them evenly.

    Raises:
        RagJaxError: the budget is not positive.
    """
    if budget < 1:
        raise RagJaxError(f"budget={budget}: must be at least 1")
    longest = round_up(largest.tokens, _LANES)
    most = budget // multiple  # tokens of a sequence, where a microbatch has the fewest sequences
    widths = {longest * times for times in range(2, _WIDEST + 1) if longest * times <= most}
    if multiple > 1:
        widths |= {w for w in _list_even(batches, multiple) if longest < w <= most}
    share = program_tokens * len(batches) / steps  # what a program is worth on these steps

    def cost(shapes: Shapes) -> float:
        micros = (micro for batch in batches for micro in group_examples(batch, shapes))
        computed = sum(m.rows * m.width * (1 + m.width * slot_cost) for m in micros)
        return computed + len(shapes.widths) * len(shapes.rows) * share

    limits = {"largest": largest, "budget": budget, "share": share, "multiple": multiple}
    made = (_make_shapes(batches, width, **limits) for width in sorted({longest, *widths}))
    return min(made, key=cost)


def group_examples(sizes: Sequence[Size], shapes: Shapes) -> Iterator[Microbatch]:
    """Packs examples, each once, into microbatches; numbers of examples are those in `sizes`."""
    sequences = [
        (sum(sizes[i].tokens for i in sequence), sequence) for sequence in _pack(sizes, shapes)
    ]
    sequences.sort(key=lambda filled: (-filled[0], filled[1]))
    for start in range(0, len(sequences), shapes.rows[-1]):
        part = sequences[start : start + shapes.rows[-1]]
        rows = min(rows for rows in shapes.rows if rows >= len(part))
        width = min(width for width in shapes.widths if width >= part[0][0])
        yield Microbatch([sequence for _, sequence in part], rows, width)


@dataclass(frozen=True, eq=False)
class Packing:
    """Packs examples of known sizes and several kinds, which never share a microbatch.

    Args:
        sizes: size of every example.
        kinds: kind of every example.
        batches: the examples of the steps that shapes are chosen on.
        budget: as for `choose_shapes`, as are the arguments after it.
    """

    sizes: Sequence[Size]
    _: dataclasses.KW_ONLY
    kinds: Sequence[str]
    batches: Sequence[Sequence[int]]
    budget: int
    steps: int
    slot_cost: float
    program_tokens: int
    multiple: int = 1

    @functools.cached_property
    def shapes(self) -> dict[str, Shapes]:
        """The shapes of each kind's microbatches."""
        return {kind: self._choose(kind) for kind in sorted(set(self.kinds))}

    def group(self, examples: Sequence[int]) -> list[Microbatch]:
        """Packs examples, each once, into microbatches, sorted by kind."""
        grouped = []
        for kind, shapes in self.shapes.items():
            members = self._list_members(kind, examples)
            for micro in group_examples([self.sizes[i] for i in members], shapes):
                sequences = [[members[i] for i in sequence] for sequence in micro.sequences]
                grouped.append(micro._replace(sequences=sequences, kind=kind))
        return grouped

    def _list_members(self, kind: str, examples: Sequence[int]) -> list[int]:
        return [i for i in examples if self.kinds[i] == kind]

    def _choose(self, kind: str) -> Shapes:
        sizes = [self.sizes[i] for i in self._list_members(kind, range(len(self.sizes)))]
        batches = [self._list_members(kind, batch) for batch in self.batches]
        return choose_shapes(
            [[self.sizes[i] for i in batch] for batch in batches],
            largest=Size(*(max(of) for of in zip(*sizes, strict=True))),
            budget=self.budget,
            steps=self.steps,
            slot_cost=self.slot_cost,
            program_tokens=self.program_tokens,
            multiple=self.multiple,
        )


class Sequences:
    """The arrays of a microbatch's sequences, which are filled with texts one after the other."""

    def __init__(self, batch: int, width: int) -> None:
        self._arrays = np.zeros((3, batch, width), np.int32)
        self._ends, self._counts = [0] * batch, [0] * batch

    def add(self, sequence: int, tokens: Sequence[int]) -> int:
        """Adds a text to a sequence; returns the text's first position.

        Raises:
            RagJaxError: the sequence has no room for the text, or there is no such sequence.
        """
        _, batch, width = self._arrays.shape
        if sequence >= batch:
            raise RagJaxError(f"batch={batch}: there are more sequences")
        begin = self._ends[sequence]
        end = begin + len(tokens)
        if end > width:
            raise RagJaxError(f"width={width}: the texts of a sequence have {end} tokens or more")
        self._ends[sequence] = end
        self._counts[sequence] += 1
        places = self._arrays[:, sequence, begin:end]
        places[0], places[1] = tokens, self._counts[sequence]
        places[2] = np.arange(len(tokens))
        return begin

    def list_arrays(
        self,
    ) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
        """Tokens; the number of each token's text in its sequence, from 1 on, and 0 on padding
        (segments); and the position in the text."""
        tokens, segments, positions = self._arrays
        return tokens, segments, positions


def _make_shapes(
    batches: Sequence[Sequence[Size]],
    width: int,
    *,
    largest: Size,
    budget: int,
    share: float,
    multiple: int,
) -> Shapes:
    sizes = [size for batch in batches for size in batch] or [largest]
    tokens, targets = (max(1, sum(of)) for of in zip(*sizes, strict=True))
    room = min(width, max(budget, *(size.tokens for size in sizes)))
    average = int((_MESH_SLACK if multiple > 1 else _SLACK) * width * targets / tokens)
    targets = round_up(max(largest.targets, average), _LANES)
    shapes = Shapes((width,), (1,), room, targets, max(1, len(sizes)))
    packed = [list(_pack(batch, shapes)) for batch in batches]
    items = max((len(sequence) for sequences in packed for sequence in sequences), default=1)
    needed = -(-max((len(sequences) for sequences in packed), default=1) // multiple)
    rows = max(1, min(budget // width // multiple, needed))
    if rows == 1:
        steps = zip(batches, packed, strict=True)
        fills = [sum(b[i].tokens for i in sequence) for b, p in steps for sequence in p]
        chosen = choose_widths(fills, program_tokens=int(share))
        widths = tuple(sorted({*chosen, width}))
        return shapes._replace(widths=widths, rows=(multiple,), items=items)
    halved = {-(-rows // 2**n) * multiple for n in range(_HALVINGS + 1)}
    return shapes._replace(rows=tuple(sorted(halved)), items=items)


def _list_even(batches: Sequence[Sequence[Size]], multiple: int) -> Iterator[int]:
    """Widths at which a step of average size fills its sequences, a few times `multiple`."""
    average = sum(size.tokens for batch in batches for size in batch) / max(1, len(batches))
    for times in range(1, _TIMES + 1):
        for room in _ROOMS:
            yield round_up(int(average * room / (times * multiple)), _LANES)


def _pack(sizes: Sequence[Size], shapes: Shapes) -> list[list[int]]:
    """First fit, from the example on that takes the largest share of a sequence's room.

    An example of many targets takes more of the room for targets than of that for tokens. If such
    examples came last, sequences of them alone would have no room for targets left, but for tokens.
    """
    limits = Size(shapes.room, max(1, shapes.targets))
    shares = [max(size.tokens / limits.tokens, size.targets / limits.targets) for size in sizes]
    sequences: list[list[int]] = []
    left: list[Size] = []  # in each sequence
    for i in sorted(range(len(sizes)), key=lambda i: (-shares[i], -sizes[i].tokens, i)):
        tokens, targets = sizes[i]
        for place, room in enumerate(left):
            fits = tokens <= room.tokens and targets <= room.targets
            if fits and len(sequences[place]) < shapes.items:
                sequences[place].append(i)
                left[place] = Size(room.tokens - tokens, room.targets - targets)
                break
        else:
            sequences.append([i])
            left.append(Size(shapes.room - tokens, shapes.targets - targets))
    return sequences
