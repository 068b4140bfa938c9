"""The one thread that computes: it answers, embeds and scores what several requests ask for."""

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from rag_jax.data.batches import double_up, round_up
from rag_jax.retrieval.texts import Role
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import find_platform
from rag_jax.runtime.progress import show_progress
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.runtime.terminal import write_text
from rag_jax.serving.errors import RequestError
from rag_jax.systems.served import Answer, Embedded, Served

_WORDS = range(3, 11)  # powers of two: words of the texts that are embedded before the start

Item = TypeVar("Item")
Result = TypeVar("Result")
Pair = tuple[str, str]


class ComputeThread:
    """Computes for requests, in a thread of its own, within the run's mesh.

    Args:
        tokens: largest number of tokens of a question.
    """

    def __init__(self, served: Served, mesh: jax.sharding.Mesh, *, tokens: int):
        self._served, self._mesh, self._tokens = served, mesh, tokens
        self._thread = ThreadPoolExecutor(1, "rag_jax")

    def close(self) -> None:
        """Ends the thread after what it is computing."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def answer(self, questions: list[str]) -> list[Answer | Exception]:
        """Answers at most a batch of questions; a question that is refused has an error."""
        return await self._call(self._answer_checked, questions)

    async def embed(self, requests: list[tuple[Sequence[str], Role]]) -> list[Embedded | Exception]:
        """Embeds the texts of some requests, each with a role."""
        return await self._call(lambda own: self._isolate(self._embed_all, own), requests)

    async def score(self, requests: list[Sequence[Pair]]) -> list[Any]:
        """Scores the pairs of some requests."""
        return await self._call(lambda own: self._isolate(self._score_all, own), requests)

    async def warm_up(self) -> None:
        """Compiles what questions, texts and pairs of every length need.

        On CPUs only what one alone needs: there computing a whole batch takes about as long as
        compiling it.
        """
        await self._call(self._warm_up, None)

    async def _call(self, function: Callable[[Item], Result], given: Item) -> Result:
        def run() -> Result:
            with jax.set_mesh(self._mesh):
                return function(given)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _answer_checked(self, questions: list[str]) -> list[Answer | Exception]:
        results: list[Any] = [None] * len(questions)
        for i, question in enumerate(questions):
            try:
                self._count(question)
            except RequestError as error:
                results[i] = error
        asked = [i for i, refused in enumerate(results) if refused is None]
        answers = self._isolate(self._answer_padded, [questions[i] for i in asked])
        for i, answer in zip(asked, answers, strict=True):
            results[i] = answer
        return results

    def _count(self, question: str) -> int:
        """The number of a question's tokens; raises a RequestError if it is refused."""
        try:
            count = self._served.check(question)
        except RagJaxError as error:
            raise RequestError(400, str(error), "messages") from None
        if count > self._tokens:
            message = f"the question has {count} tokens, and the limit is {self._tokens}"
            raise RequestError(400, f"{message}: shorten it", "messages")
        return count

    def _answer_padded(self, questions: list[str]) -> list[Answer]:
        """Answers at most a batch of questions, padded to the next of the sizes."""
        size = next(size for size in self._list_sizes() if size >= len(questions))
        padding = [questions[-1]] * (size - len(questions))
        return self._served.answer([*questions, *padding])[: len(questions)]

    def _embed_all(self, requests: list[tuple[Sequence[str], Role]]) -> list[Embedded]:
        results: list[Any] = [None] * len(requests)
        for role in {role for _, role in requests}:
            rows = [i for i, request in enumerate(requests) if request[1] == role]
            texts = [requests[i][0] for i in rows]
            vectors, tokens = self._served.embed([text for own in texts for text in own], role)
            ends = [0, *accumulate(map(len, texts))]
            for i, (start, end) in zip(rows, pairwise(ends), strict=True):
                results[i] = Embedded(vectors[start:end], tokens[start:end])
        return results

    def _score_all(self, requests: list[Sequence[Pair]]) -> list[Float[np.ndarray, "N"]]:
        scores = self._served.score([pair for own in requests for pair in own])
        return np.split(scores, [*accumulate(map(len, requests))][:-1])

    def _isolate(
        self, compute: Callable[[list[Item]], list[Result]], items: list[Item]
    ) -> list[Result | Exception]:
        """The results; if one item is at fault, the others are computed without it."""
        if not items:
            return []
        try:
            return compute(items)
        except Exception as error:
            if len(items) > 1:
                return [self._isolate(compute, [item])[0] for item in items]
            _report(error)
            return [RequestError(500, "the server failed; its own output says where")]

    def _warm_up(self, _: None) -> None:
        batches = list(self._list_batches())
        with show_progress("compiling", len(batches), unit="batches") as bar:
            for compute in batches:
                compute()
                bar.update()

    def _list_batches(self) -> Iterator[Callable[[], Any]]:
        """What needs a program each: questions, texts and pairs, alone and maybe together."""
        served, alone = self._served, find_platform() == "cpu"
        if served.answer is not None:
            sizes = self._list_sizes()
            for question in self._list_questions():
                for count in sizes[:1] if alone else sizes:
                    yield partial(self._answer_padded, [question] * count)
        # One text has a program of its own.
        for text in (" ".join(["a"] * (1 << power)) for power in _WORDS):
            for texts in ([text], [text] * 2)[: 1 if alone else 2]:
                if served.embed is not None:
                    yield partial(served.embed, texts, "query")
                    yield partial(served.embed, texts, "document")
                if served.score is not None:
                    yield partial(served.score, [("a", text) for text in texts])

    def _list_sizes(self) -> list[int]:
        """Numbers of questions that a batch is padded to.

        A CPU takes as long for two rows as for one and one; an accelerator has rows to spare, and
        takes longer to compile a program.
        """
        parts = 2 if find_platform() == "cpu" else 4
        return list_sizes(self._served.batch_size, rows=count_data_rows(), parts=parts)

    def _list_questions(self) -> list[str]:
        """A question for each of the widths, doubled from 32 tokens, that are within the limit."""
        questions, words = {}, 1
        with contextlib.suppress(RequestError):  # the first that is refused
            while True:
                question = " ".join(["a"] * words)
                questions.setdefault(double_up(self._count(question), 32), question)
                words += 1 + words // 16
        return list(questions.values())


def list_sizes(full: int, *, rows: int, parts: int) -> list[int]:
    """Sizes of batches: a full one, a half or another part of it, and so on.

    Args:
        rows: that the mesh divides a batch among, the smallest size; `full` is a multiple.
        parts: of which a size is one of the next larger.
    """
    sizes = [full]
    while sizes[0] > rows:
        sizes.insert(0, round_up(-(-sizes[0] // parts), rows))
    return sizes


def _report(error: Exception) -> None:
    """Says where an error came from. Its message may have a question or a path: it is left out."""
    places = "".join(traceback.format_tb(error.__traceback__))
    write_text(f"{places}{type(error).__name__}", sys.stderr)
