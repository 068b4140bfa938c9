"""What the routes do: from a request, by way of a batch, to a response."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from rag_jax.serving import responses
from rag_jax.serving.batcher import Batcher
from rag_jax.serving.compute_thread import ComputeThread
from rag_jax.serving.errors import RequestError
from rag_jax.serving.limits import Limits
from rag_jax.serving.requests import (
    check_model,
    read_chat,
    read_embedding,
    read_object,
    read_rerank,
)
from rag_jax.systems.served import Served

_TOGETHER = 16  # requests for embeddings or scores that are worked on together
_GONE = 499, "the client has gone"  # with nginx's status

Result = TypeVar("Result")


class Endpoints:
    """The endpoints of a run that is served under a name; `batchers` have to be running."""

    def __init__(self, name: str, served: Served, thread: ComputeThread, limits: Limits):
        self._name, self._limits, self._created = name, limits, int(time.time())
        waiting = limits.waiting
        self._answering = Batcher(thread.answer, size=served.batch_size, waiting=waiting)
        self._embedding = Batcher(thread.embed, size=_TOGETHER, waiting=waiting)
        self._scoring = Batcher(thread.score, size=_TOGETHER, waiting=waiting)
        self.batchers = self._answering, self._embedding, self._scoring

    async def chat(self, request: Request) -> Response:
        """Answers a question; a stream begins when the answer is finished."""
        asked = read_chat(await self._read_fields(request), self._limits)
        answer = await _unless_gone(request, self._answering.submit(asked.question))
        if not asked.streams:
            return JSONResponse(responses.describe_answer(self._name, answer))
        events = responses.stream_answer(self._name, answer, asked)
        return StreamingResponse(events, media_type="text/event-stream")

    async def embed(self, request: Request) -> Response:
        """Embeds texts."""
        asked = read_embedding(await self._read_fields(request), self._limits)
        embedded = await _unless_gone(request, self._embedding.submit((asked.texts, asked.role)))
        size = embedded.vectors.shape[1]
        if asked.size not in (None, size):
            raise RequestError(400, f"dimensions: the run's encoder has {size}", "dimensions")
        return JSONResponse(responses.describe_embeddings(self._name, asked, embedded))

    async def rerank(self, request: Request) -> Response:
        """Orders documents for a query."""
        asked = read_rerank(await self._read_fields(request), self._limits)
        pairs = [(asked.query, document) for document in asked.documents]
        scores = await _unless_gone(request, self._scoring.submit(pairs))
        return JSONResponse(responses.describe_ranking(self._name, asked, scores))

    async def list_models(self, request: Request) -> Response:
        """Lists the one model."""
        return JSONResponse(responses.list_models(self._name, self._created))

    async def describe_model(self, request: Request) -> Response:
        """Describes the one model, by its name in the path."""
        check_model({"model": request.path_params["name"]}, self._name)
        return JSONResponse(responses.describe_model(self._name, self._created))

    async def tell_health(self, request: Request) -> Response:
        """Says that the server lives, and how many requests wait for their batch."""
        waiting = sum(batcher.waiting for batcher in self.batchers)
        return JSONResponse({"status": "ok", "waiting": waiting})

    async def _read_fields(self, request: Request) -> dict[str, Any]:
        """The fields of a body, of which no more is read than the limit."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, "the header Content-Type must be application/json")
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            message = "the header Content-Encoding must be left out: send the body uncompressed"
            raise RequestError(415, message)
        body, most = bytearray(), self._limits.body
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        message = f"the body is larger than the limit of {most} bytes"
                        raise RequestError(413, message)
        except TimeoutError:
            raise RequestError(408, "the body did not come in time") from None
        except ClientDisconnect:
            raise RequestError(*_GONE) from None
        fields = read_object(bytes(body))
        check_model(fields, self._name)
        return fields


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work, which is cancelled when the client goes away."""

    async def wait_for_end() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(wait_for_end())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(*_GONE)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
