"""The queue in front of an engine, with an engine that is none."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.serving.batcher import Batcher
from rag_jax.serving.errors import RequestError


class Engine:
    """Doubles numbers, some turns of the loop later; notes its batches."""

    def __init__(self, turns=3):
        self.turns, self.batches = turns, []

    async def work(self, items):
        self.batches.append(items)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return [ValueError(item) if item < 0 else 2 * item for item in items]


@contextlib.asynccontextmanager
async def running(work, *, size=4, waiting=1000):
    batcher = Batcher(work, size=size, waiting=waiting)
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
        assert not task.done()
    finally:
        task.cancel()


# For each request when it comes, in turns of the loop, and when it goes away, if it does.
REQUESTS = st.lists(
    st.tuples(st.integers(0, 12), st.none() | st.integers(0, 6)), min_size=1, max_size=30
)


@given(REQUESTS, st.integers(1, 5))
def test_every_request_gets_its_own_answer(requests, size):
    engine = Engine()

    async def ask(batcher, number, comes, goes):
        for _ in range(comes):
            await asyncio.sleep(0)
        task = asyncio.create_task(batcher.submit(number))
        if goes is not None:
            for _ in range(goes):
                await asyncio.sleep(0)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return None

    async def ask_all():
        async with running(engine.work, size=size) as batcher:
            asked = (ask(batcher, i, *times) for i, times in enumerate(requests))
            return await asyncio.wait_for(asyncio.gather(*asked), 10)

    answers = asyncio.run(ask_all())
    for number, ((_, goes), answer) in enumerate(zip(requests, answers, strict=True)):
        assert answer == 2 * number or (answer is None and goes is not None)
    assert all(1 <= len(batch) <= size for batch in engine.batches)
    worked = [number for batch in engine.batches for number in batch]
    assert len(worked) == len(set(worked))
    assert {number for number, answer in enumerate(answers) if answer is not None} <= {*worked}


def test_those_that_wait_are_answered_together_in_their_order():
    engine = Engine(turns=20)

    async def ask_all():
        async with running(engine.work) as batcher:
            first = asyncio.create_task(batcher.submit(100))
            while not engine.batches:
                await asyncio.sleep(0)
            return await asyncio.gather(first, *map(batcher.submit, range(9)))

    assert asyncio.run(ask_all()) == [200, *range(0, 18, 2)]
    assert engine.batches == [[100], [0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_full_queue_refuses_and_a_cancelled_request_leaves_room():
    engine, go_on = Engine(), asyncio.Event()

    async def work(items):
        await go_on.wait()
        return await engine.work(items)

    async def ask_all():
        async with running(work, waiting=3) as batcher:
            first = asyncio.create_task(batcher.submit(0))
            await asyncio.sleep(0.01)
            others = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="3 requests are waiting") as refused:
                await batcher.submit(4)
            assert refused.value.status == 429
            others[1].cancel()
            await asyncio.sleep(0)
            last = asyncio.create_task(batcher.submit(5))
            await asyncio.sleep(0)
            go_on.set()
            return await asyncio.gather(first, *others, last, return_exceptions=True)

    first, one, two, three, last = asyncio.run(ask_all())
    assert (first, one, three, last) == (0, 2, 6, 10)
    assert isinstance(two, asyncio.CancelledError)
    assert engine.batches == [[0], [1, 3, 5]]


def test_errors_are_those_of_their_requests():
    async def fail(items):
        raise OSError("gone")

    async def few(items):
        return items[1:]

    async def ask(work):
        async with running(work) as batcher:
            asked = map(batcher.submit, (1, -1, 2))
            answers = await asyncio.gather(*asked, return_exceptions=True)
            # It works on.
            await asyncio.gather(batcher.submit(1), return_exceptions=True)
            return answers

    first, error, second = asyncio.run(ask(Engine().work))
    assert (first, second) == (2, 4) and isinstance(error, ValueError)
    assert {str(error) for error in asyncio.run(ask(fail))} == {"gone"}
    assert {str(error) for error in asyncio.run(ask(few))} == {"2 results of 3 items"}
