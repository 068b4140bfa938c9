import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data.batches import BatchPlan, choose_bucket, pad_rows
from rag_jax.errors import RagJaxError

LENGTHS = st.lists(st.integers(0, 32), min_size=1, max_size=60)
BUCKETS = (4, 8, 16, 32)


def _epoch(plan, epoch=0):
    steps = range(epoch * plan.num_steps_per_epoch, (epoch + 1) * plan.num_steps_per_epoch)
    return [plan.batch_at(step) for step in steps]


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_every_example_once_an_epoch_in_its_bucket(lengths, batch_size, seed, epoch):
    plan = BatchPlan(lengths, buckets=BUCKETS, batch_size=batch_size, seed=seed)
    seen = collections.Counter()
    for batch in _epoch(plan, epoch):
        assert batch.indices.shape == batch.valid.shape == (batch_size,)
        assert batch.indices.dtype == np.int32 and batch.valid.dtype == bool
        assert batch.valid.any()
        for index in batch.indices:
            assert choose_bucket(lengths[index], BUCKETS) == batch.length
        seen.update(batch.indices[batch.valid].tolist())
    assert seen == collections.Counter(range(len(lengths)))


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_processes_together_are_the_one_process_batch(lengths, processes, local, seed):
    size = processes * local
    whole = BatchPlan(lengths, buckets=BUCKETS, batch_size=size, seed=seed)
    parts = BatchPlan(lengths, buckets=BUCKETS, batch_size=size, seed=seed, processes=processes)
    assert parts.num_steps_per_epoch == whole.num_steps_per_epoch
    for step in range(2 * whole.num_steps_per_epoch):
        batch = whole.batch_at(step)
        pieces = [parts.batch_at(step, process) for process in range(processes)]
        np.testing.assert_array_equal(np.concatenate([p.indices for p in pieces]), batch.indices)
        np.testing.assert_array_equal(np.concatenate([p.valid for p in pieces]), batch.valid)
        assert {p.length for p in pieces} == {batch.length}


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(0, 5), st.integers(0, 100))
def test_a_step_depends_on_nothing_asked_before(lengths, seed, step):
    def make():
        return BatchPlan(lengths, buckets=BUCKETS, batch_size=3, seed=seed)

    walked = make()
    for earlier in range(min(step, 20)):
        walked.batch_at(earlier)
    one, other = walked.batch_at(step), make().batch_at(step)
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.valid, other.valid)
    assert one.length == other.length


def test_epochs_and_seeds_differ():
    lengths = np.arange(64) % 16
    plan = BatchPlan(lengths, buckets=(16,), batch_size=8, seed=0)
    other = BatchPlan(lengths, buckets=(16,), batch_size=8, seed=1)

    def order(plan, epoch):
        return np.concatenate([b.indices for b in _epoch(plan, epoch)]).tolist()

    assert order(plan, 0) != order(plan, 1)
    assert order(plan, 0) != order(other, 0)
    assert sorted(order(plan, 0)) == list(range(64))


def test_buckets_come_mixed():
    plan = BatchPlan([4] * 40 + [16] * 40, buckets=BUCKETS, batch_size=4, seed=0)
    lengths = [batch.length for batch in _epoch(plan)]
    assert lengths != sorted(lengths) and set(lengths) == {4, 16}


def test_remainder_repeats_its_own_rows():
    plan = BatchPlan([1, 2], buckets=(4,), batch_size=5, seed=0)
    (batch,) = _epoch(plan)
    assert batch.valid.tolist() == [True, True, False, False, False]
    assert set(batch.indices.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [3, 9, 40, 33]}, "2 of 4 examples .* first example 2 of length 40"),
        ({"lengths": []}, "there are no examples"),
        ({"buckets": ()}, "buckets"),
        ({"buckets": (8, 4)}, "must be positive and increasing"),
        ({"buckets": (0, 4)}, "must be positive and increasing"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "processes": 2}, "batch_size=5: must be a positive multiple"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings(change, message):
    good = {"lengths": [1, 2], "buckets": (4, 32), "batch_size": 4, "seed": 0, **change}
    with pytest.raises(RagJaxError, match=message):
        BatchPlan(good.pop("lengths"), **good)


def test_steps_out_of_range():
    plan = BatchPlan([1], buckets=(4,), batch_size=2, seed=0, processes=2)
    for step, process in ((-1, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match="no step"):
            plan.batch_at(step, process)


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
