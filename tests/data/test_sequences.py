"""Examples in sequences, and sequences in microbatches of few shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.data.packing import Packing, Sequences, Size, choose_shapes, group_examples
from rag_jax.runtime.errors import RagJaxError

# The kind, the number of tokens and the share of these that are targets.
EXAMPLES = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 60), st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


def make_packing(examples, batch_size=8, **changes):
    kinds, lengths, shares = zip(*examples, strict=True)
    batches = np.array_split(np.arange(len(examples)), -(-len(examples) // batch_size))
    options = {"budget": 128, "slot_cost": 1e-3, "program_tokens": 200, "multiple": 1}
    sizes = [Size(n, int(share * n)) for n, share in zip(lengths, shares, strict=True)]
    options |= {"kinds": kinds, "steps": len(batches)}
    options |= {"batches": [batch.tolist() for batch in batches]}
    return Packing(sizes, **options | changes)


def count_tokens(packing, examples):
    """Numbers of tokens of some examples, and of those that are computed, with padding."""
    computed = sum(micro.rows * micro.width for micro in packing.group(examples))
    return sum(packing.sizes[i].tokens for i in examples), computed


@given(EXAMPLES, st.integers(1, 20), st.integers(1, 400), st.integers(1, 4))
def test_examples_are_packed_once_at_few_shapes(examples, batch_size, budget, multiple):
    packing = make_packing(examples, batch_size, budget=budget, multiple=multiple)
    seen, shapes = [], set()
    for batch in packing.batches:
        for micro in packing.group(batch):
            seen += [i for sequence in micro.sequences for i in sequence]
            shapes.add((micro.kind, micro.rows, micro.width))
            of_kind = packing.shapes[micro.kind]
            assert 0 < len(micro.sequences) <= micro.rows and micro.rows % multiple == 0
            longest = max(packing.sizes[i].tokens for i in range(len(examples)))
            assert micro.rows * micro.width <= max(budget, multiple * (longest + 7))
            for sequence in micro.sequences:
                assert 0 < len(sequence) <= of_kind.items
                assert all(packing.kinds[i] == micro.kind for i in sequence)
                tokens, targets = map(sum, zip(*(packing.sizes[i] for i in sequence), strict=True))
                assert tokens <= micro.width and targets <= of_kind.targets
                assert len(sequence) == 1 or tokens <= of_kind.room
    assert sorted(seen) == list(range(len(examples)))
    for of_kind in packing.shapes.values():
        assert 1 in (len(of_kind.rows), len(of_kind.widths)) and len(of_kind.rows) <= 3


def test_other_steps_than_those_that_the_shapes_were_chosen_on_are_packed():
    examples = [("a", 10, 0.5)] * 20 + [("a", 60, 1.0)] * 20
    packing = make_packing(examples)
    packing = make_packing(examples, batches=packing.batches[:1], steps=5)
    grouped = packing.group(range(20, 40))
    assert sorted(i for micro in grouped for s in micro.sequences for i in s) == [*range(20, 40)]


def test_little_is_padding():
    rng = np.random.default_rng(0)
    examples = [("a", int(length), 0.1) for length in rng.integers(20, 200, 640)]
    for budget, batch_size in ((65_536, 64), (2_048, 64)):
        packing = make_packing(examples, batch_size, budget=budget, slot_cost=1e-4)
        counted = [count_tokens(packing, batch) for batch in packing.batches]
        tokens, computed = np.sum(counted, axis=0)
        assert tokens == sum(length for _, length, _ in examples)
        assert tokens / computed > 0.85, packing.shapes


def test_little_is_padding_on_a_mesh():
    """Where a microbatch has a multiple of 16 sequences, a step's tokens fill such a number."""
    rng = np.random.default_rng(0)
    # Half of the examples are longer and have few targets.
    kinds = [(200, 0.9), (900, 0.02)] * 1280
    examples = [("a", int(rng.integers(100, longest)), share) for longest, share in kinds]
    packing = make_packing(examples, 128, budget=65_536, slot_cost=1e-5, multiple=16)
    tokens, computed = np.sum([count_tokens(packing, batch) for batch in packing.batches], axis=0)
    assert tokens / computed > 0.8, packing.shapes
    assert len(packing.shapes["a"].widths) * len(packing.shapes["a"].rows) <= 6


def test_many_programs_where_they_cost_little():
    rng = np.random.default_rng(0)
    examples = [("a", int(length), 0.1) for length in rng.integers(10, 120, 200)]
    few, many = (
        make_packing(examples, 2, program_tokens=tokens).shapes["a"] for tokens in (5_000, 50)
    )
    assert len(few.widths) < len(many.widths)


def test_sizes_that_are_known_at_their_step_alone():
    """An example as large as allowed has a place, and others do not pay for it."""
    batches = [[Size(90, 10)] * 4] * 4
    options = {"largest": Size(400, 40), "budget": 120, "steps": 40, "slot_cost": 1e-3}
    shapes = choose_shapes(batches, **options, program_tokens=100)
    assert shapes.widths == (96, 400) and shapes.room == 120 and shapes.items == 1
    micros = list(group_examples([Size(90, 40), Size(400, 1), Size(25, 1)], shapes))
    assert [(m.sequences, m.rows, m.width) for m in micros] == [
        ([[1]], 1, 400),
        ([[0]], 1, 96),
        ([[2]], 1, 96),
    ]


def test_sequences():
    sequences = Sequences(2, 6)
    assert [sequences.add(1, [7, 8]), sequences.add(1, [9]), sequences.add(0, [5])] == [0, 2, 0]
    tokens, segments, positions = sequences.list_arrays()
    assert tokens.tolist() == [[5, 0, 0, 0, 0, 0], [7, 8, 9, 0, 0, 0]]
    assert segments.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 2, 0, 0, 0]]
    assert positions.tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    with pytest.raises(RagJaxError, match="^width=6: the texts of a sequence have 7 tokens"):
        sequences.add(1, [1] * 4)


def test_a_budget_below_one():
    with pytest.raises(RagJaxError, match="budget=0"):
        make_packing([("a", 3, 0.5)], budget=0).group([0])
