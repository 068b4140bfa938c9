"""Batches: requests that wait at the same time are worked on together, in the order they came."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from rag_jax.serving.errors import RequestError

# A batch that is not full waits for more requests for this share of the last batch's time, and at
# most these seconds: clients that were answered together ask again one after the other.
_SHARE, _LONGEST = 0.05, 0.25

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """A bounded queue in front of a function that works on several items at once.

    Args:
        work: from items to a result for each, or the exception that the item's sender is to have.
            It is called for one batch at a time.
        size: largest number of items of a batch.
        waiting: largest number of items that wait for their batch; further ones are refused.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        size: int,
        waiting: int,
    ):
        self._work, self._size, self._most = work, size, waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._seconds = 0.0  # that the last batch took

    @property
    def waiting(self) -> int:
        """Number of items that wait for their batch."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Result:
        """The result of an item; when it is cancelled, the item leaves the queue.

        Raises:
            RequestError: the queue is full.
        """
        if len(self._waiting) >= self._most:
            raise RequestError(429, f"{self._most} requests are waiting already: try again later")
        entry = item, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        self._arrived.set()
        try:
            return await entry[1]
        finally:
            with contextlib.suppress(ValueError):  # its batch has begun
                self._waiting.remove(entry)

    async def run(self) -> None:
        """Works on batch after batch until it is cancelled."""
        while True:
            await self._gather()
            count = min(self._size, len(self._waiting))
            await self._finish([self._waiting.popleft() for _ in range(count)])

    async def _gather(self) -> None:
        """Waits for an item, and then for a short time for the others of its batch."""
        clock = asyncio.get_running_loop().time
        end = None
        with contextlib.suppress(TimeoutError):
            while len(self._waiting) < self._size:
                if not self._waiting:
                    end = None
                elif end is None:
                    end = clock() + min(_SHARE * self._seconds, _LONGEST)
                self._arrived.clear()
                async with asyncio.timeout_at(end):
                    await self._arrived.wait()

    async def _finish(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        clock = asyncio.get_running_loop().time
        if not batch:  # all of its senders have gone
            return
        start = clock()
        try:
            results: Sequence[Result | Exception] = await self._work([item for item, _ in batch])
            if len(results) != len(batch):
                raise ValueError(f"{len(results)} results of {len(batch)} items")
        except Exception as error:
            results = [error] * len(batch)
        self._seconds = clock() - start
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its sender has gone
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
