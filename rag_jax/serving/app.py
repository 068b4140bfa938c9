"""The application: its routes, and who may use them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rag_jax.serving.access import check_access
from rag_jax.serving.compute_thread import ComputeThread
from rag_jax.serving.endpoints import Endpoints
from rag_jax.serving.errors import RequestError
from rag_jax.serving.limits import Limits
from rag_jax.systems.served import Served

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    name: str, served: Served, thread: ComputeThread, *, token: str | None, limits: Limits
) -> Starlette:
    """The application that serves a run.

    Args:
        name: of the model.
        token: that clients send; None to have this machine alone ask.
    """
    endpoints = Endpoints(name, served, thread, limits)

    def guard(endpoint: Endpoint, has: Any = True, lacks: str = "") -> Endpoint:
        async def run(request: Request) -> Response:
            check_access(request, token)
            if has is None:
                raise RequestError(404, f"{name} {lacks}")
            return await endpoint(request)

        return run

    chat = guard(endpoints.chat, served.answer, "writes no answers: it finds passages")
    embed = guard(endpoints.embed, served.embed, "has no encoder in this run")
    rerank = guard(endpoints.rerank, served.score, "has no reranker in this run")
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/embeddings", embed, methods=["POST"]),
            Route("/v1/rerank", rerank, methods=["POST"]),
            Route("/v1/models", guard(endpoints.list_models)),
            Route("/v1/models/{name}", guard(endpoints.describe_model)),
            Route("/health", endpoints.tell_health),
        ],
        exception_handlers={RequestError: _refuse, HTTPException: _refuse_path, Exception: _fail},
        lifespan=lambda _: _run(endpoints, thread),
    )


@contextlib.asynccontextmanager
async def _run(endpoints: Endpoints, thread: ComputeThread) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(batcher.run()) for batcher in endpoints.batchers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        thread.close()


async def _refuse(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.describe(), error.status, _HEADERS.get(error.status))


async def _fail(request: Request, error: Exception) -> Response:
    return JSONResponse(RequestError(500, "the server failed").describe(), 500)


async def _refuse_path(request: Request, error: HTTPException) -> Response:
    refused = RequestError(error.status_code, f"{request.method} of this path: {error.detail}")
    return JSONResponse(refused.describe(), error.status_code, error.headers)
