import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data import batches
from rag_jax.data.batches import BatchPlan, choose_bucket, pad_rows
from rag_jax.runtime.errors import RagJaxError

BUCKETS = (4, 8, 16, 32)
STRATA = st.lists(st.integers(0, 2), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(STRATA, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_example_once_an_epoch(strata, batch_size, seed, epoch):
    plan = BatchPlan(strata, batch_size=batch_size, seed=seed)
    steps = range(epoch * plan.num_steps_per_epoch, (epoch + 1) * plan.num_steps_per_epoch)
    dealt = [plan.examples_at(step) for step in steps]
    assert all(0 < len(batch) <= batch_size for batch in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert sorted(i for batch in dealt for i in batch) == list(range(len(strata)))


@settings(deadline=None, max_examples=30)
@given(STRATA, st.integers(0, 5), st.integers(0, 100))
def test_a_step_depends_on_nothing_asked_before(strata, seed, step):
    walked, asked = (BatchPlan(strata, batch_size=4, seed=seed) for _ in range(2))
    for earlier in range(min(step, 20)):
        walked.examples_at(earlier)
    assert walked.examples_at(step) == asked.examples_at(step)


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        plan = BatchPlan([0] * 64, batch_size=8, seed=seed)
        return [i for step in range(8) for i in plan.examples_at(8 * epoch + step)]

    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_an_epoch_is_dealt_once(monkeypatch):
    """A step costs what its batch costs, and not what the epoch's order does."""
    dealt, sort = [], np.argsort
    monkeypatch.setattr(np, "argsort", lambda *args, **kw: dealt.append(1) or sort(*args, **kw))
    plan = BatchPlan([0] * 40, batch_size=4, seed=0)
    first = [plan.examples_at(step) for step in range(10)]
    assert len(dealt) == 1
    plan.examples_at(10)
    assert len(dealt) == 2
    assert [plan.examples_at(step) for step in range(10)] == first and len(dealt) == 3


def test_strata_are_spread_evenly():
    strata = [0] * 30 + [1] * 70
    plan = BatchPlan(strata, batch_size=10, seed=0)
    for step in range(20):
        ones = sum(strata[i] for i in plan.examples_at(step))
        assert 6 <= ones <= 8


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"seed": -1}])
def test_bad_settings(change):
    ((name, value),) = change.items()
    with pytest.raises(RagJaxError, match=f"{name}={value}: must be at least"):
        BatchPlan([0, 0], **{"batch_size": 4, "seed": 0, **change})


def test_no_examples():
    with pytest.raises(RagJaxError, match="there are no examples"):
        BatchPlan([], batch_size=1, seed=0)


def test_steps_out_of_range():
    with pytest.raises(ValueError, match="step=-1: must not be negative"):
        BatchPlan([0], batch_size=1, seed=0).examples_at(-1)


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(0, 800), min_size=3, max_size=40))
def test_widths_cost_least(counts):
    lengths = [length for length, count in enumerate(counts) for _ in range(count)]
    every = range(8, 48, 8)

    def cost(widths):
        padded = sum(min(w for w in widths if w >= length) for length in lengths)
        return padded + 5_000 * len(widths)

    chosen = batches.choose_widths(lengths, program_tokens=5_000)
    if not lengths:
        assert chosen == []
        return
    choices = itertools.chain.from_iterable(itertools.combinations(every, n) for n in range(6))
    enough = (c for c in choices if c and max(c) >= max(lengths))
    assert cost(chosen) == min(map(cost, enough))


@given(st.integers(0, 1000), st.integers(1, 50))
def test_round_up_is_the_least_multiple(length, multiple):
    rounded = batches.round_up(length, multiple)
    assert (
        rounded % multiple == 0
        and rounded >= max(length, 1)
        and rounded - multiple < max(length, 1)
    )


def test_pad_rows():
    tokens, mask = pad_rows([[1, 2, 3], [], [4]], 4, pad_id=9, batch=4)
    assert tokens.tolist() == [[1, 2, 3, 9], [9] * 4, [4, 9, 9, 9], [9] * 4]
    assert mask.sum(1).tolist() == [3, 0, 1, 0]
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert pad_rows([], 3, pad_id=0)[0].shape == (0, 3)
    with pytest.raises(RagJaxError, match="1 of 2 rows are longer, first row 1 of 5 tokens"):
        pad_rows([[1], [1] * 5], 4, pad_id=0)
    with pytest.raises(RagJaxError, match="batch=1: there are 2 rows"):
        pad_rows([[1], [2]], 4, pad_id=0, batch=1)


def test_choose_bucket():
    assert [choose_bucket(n, BUCKETS) for n in (0, 4, 5, 32)] == [4, 4, 8, 32]
    with pytest.raises(RagJaxError, match="none holds 33 tokens"):
        choose_bucket(33, BUCKETS)


def test_widths_are_chosen_in_one_pass_over_the_lengths():
    class Counted(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    lengths = Counted(range(1, 400))
    assert batches.choose_widths(lengths, program_tokens=8_000) == batches.choose_widths(
        np.arange(1, 400), program_tokens=8_000
    )
    assert lengths.passes <= 1
