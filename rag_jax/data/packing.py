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

from rag_jax.data.batches import choose_widths, round_up
from rag_jax.runtime.errors import RagJaxError

_WIDEST = 8  # widest sequence that is tried, as a multiple of the longest example
_LANES = 8  # widths and numbers of targets are multiples of this
# Room for target tokens in a sequence, as a multiple of what its tokens have on average.
_SLACK = 1.25
_HALVINGS = 2  # of the number of sequences, for the last microbatch of a step


class Microbatch(NamedTuple):
    """Examples of one kind that are computed in one call.

    Attributes:
        sequences: the examples of each sequence; at most `rows` sequences.
        rows: number of sequences of the arrays. Those past the last are padding.
        width: number of tokens that a sequence is padded to.
    """

    kind: str
    sequences: list[list[int]]
    rows: int
    width: int


class Shapes(NamedTuple):
    """The shapes of one kind's microbatches: of several widths, or of several numbers of sequences.

    Attributes:
        widths: numbers of tokens of a sequence that there are programs for, ascending.
        rows: numbers of sequences that there are programs for, ascending.
        targets: number of target tokens of a sequence, P.
        items: largest number of examples in a sequence.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    targets: int
    items: int


@dataclass(frozen=True, eq=False)
class Packing:
    """Packs the examples of each step into microbatches of few shapes.

    The width of a kind's sequences is chosen for the least work on the first steps: a wider one has
    less padding at its end, and more of the attention between examples that is masked. Where a
    microbatch holds a single sequence, there are several widths, for what is left of a step.

    Args:
        lengths: length of every example, in tokens.
        targets: number of every example's target tokens.
        kinds: kind of every example. Examples of different kinds never share a microbatch.
        budget: maximum number of tokens of a microbatch, unless one sequence has more.
        batches: the examples of the first steps.
        steps: number of all steps.
        slot_cost: operations of attention for one slot, as a share of a token's others.
        program_tokens: number of tokens that could be computed while one program compiles.
        multiple: divisor of the number of sequences, so that a mesh divides them evenly.

    Raises:
        RagJaxError: the budget is not positive.
    """

    lengths: Sequence[int]
    _: dataclasses.KW_ONLY
    targets: Sequence[int]
    kinds: Sequence[str]
    budget: int
    batches: Sequence[Sequence[int]]
    steps: int
    slot_cost: float
    program_tokens: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise RagJaxError(f"budget={self.budget}: must be at least 1")

    @functools.cached_property
    def shapes(self) -> dict[str, Shapes]:
        """The shapes of each kind's microbatches."""
        return {kind: self._choose(kind) for kind in sorted(set(self.kinds))}

    def group(self, examples: Sequence[int]) -> list[Microbatch]:
        """Packs examples, each once, into microbatches, sorted by kind."""
        grouped = []
        for kind, shapes in self.shapes.items():
            members = [i for i in examples if self.kinds[i] == kind]
            grouped += [Microbatch(kind, *micro) for micro in self._group(members, shapes)]
        return grouped

    def count_tokens(self, examples: Sequence[int]) -> tuple[int, int]:
        """Numbers of tokens of some examples, and of those that are computed, with padding."""
        computed = sum(micro.rows * micro.width for micro in self.group(examples))
        return sum(self.lengths[i] for i in examples), computed

    def _choose(self, kind: str) -> Shapes:
        members = [i for i, k in enumerate(self.kinds) if k == kind]
        batches = [[i for i in batch if self.kinds[i] == kind] for batch in self.batches]
        longest = round_up(max(self.lengths[i] for i in members), _LANES)
        wider = [longest * times for times in range(1, _WIDEST + 1)]
        widths = [width for width in wider if width <= self.budget] or [longest]

        def cost(shapes: Shapes) -> float:
            micros = [micro for batch in batches for micro in self._group(batch, shapes)]
            computed = sum(rows * w * (1 + w * self.slot_cost) for _, rows, w in micros)
            programs = len(shapes.widths) * len(shapes.rows)
            return computed + programs * self._program_share

        return min((self._make_shapes(members, batches, width) for width in widths), key=cost)

    @property
    def _program_share(self) -> float:
        """What a program is worth on the first steps, in tokens."""
        return self.program_tokens * len(self.batches) / self.steps

    def _make_shapes(
        self, members: Sequence[int], batches: Sequence[Sequence[int]], width: int
    ) -> Shapes:
        tokens, targets = (sum(of[i] for i in members) for of in (self.lengths, self.targets))
        most = max(self.targets[i] for i in members)
        most = round_up(max(most, int(_SLACK * width * targets / max(tokens, 1))), _LANES)
        items = max(1, width // max(1, min(self.lengths[i] for i in members)))
        shapes = Shapes((width,), (1,), most, items)
        packed = [self._pack(batch, shapes) for batch in batches]
        needed = max(1, *(len(sequences) for sequences in packed))
        rows = max(1, min(self.budget // width // self.multiple, -(-needed // self.multiple)))
        if rows == 1:
            fills = [self._fill(sequence) for sequences in packed for sequence in sequences]
            chosen = choose_widths(fills, program_tokens=int(self._program_share))
            return shapes._replace(widths=(*chosen[:-1], width), rows=(self.multiple,))
        halved = {-(-rows // 2**n) * self.multiple for n in range(_HALVINGS + 1)}
        return shapes._replace(rows=tuple(sorted(halved)))

    def _fill(self, sequence: Sequence[int]) -> int:
        return sum(self.lengths[i] for i in sequence)

    def _group(
        self, examples: Sequence[int], shapes: Shapes
    ) -> Iterator[tuple[list[list[int]], int, int]]:
        """Sequences with the number of sequences of their microbatch, and its width."""
        sequences = sorted(self._pack(examples, shapes), key=self._fill, reverse=True)
        for start in range(0, len(sequences), shapes.rows[-1]):
            part = sequences[start : start + shapes.rows[-1]]
            rows = min(rows for rows in shapes.rows if rows >= len(part))
            width = min(width for width in shapes.widths if width >= self._fill(part[0]))
            yield part, rows, width

    def _pack(self, examples: Sequence[int], shapes: Shapes) -> list[list[int]]:
        """First fit, from the longest example on."""
        sequences: list[list[int]] = []
        room: list[tuple[int, int]] = []  # tokens and targets that are left in each
        for i in sorted(examples, key=lambda i: (-self.lengths[i], i)):
            length, targets = self.lengths[i], self.targets[i]
            for place, (tokens, left) in enumerate(room):
                if length <= tokens and targets <= left and len(sequences[place]) < shapes.items:
                    sequences[place].append(i)
                    room[place] = (tokens - length, left - targets)
                    break
            else:
                sequences.append([i])
                room.append((shapes.widths[-1] - length, shapes.targets - targets))
        return sequences
