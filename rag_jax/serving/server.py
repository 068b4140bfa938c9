"""The server: its socket, and its life from the first program to a clean end."""

import asyncio
import logging
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text

_PATIENCE = 30  # seconds for requests that have come, after a signal


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, on which nothing is accepted yet; port 0 is any that is free.

    Raises:
        RagJaxError: the port is in use, or there is no such address here.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RagJaxError(
            f"{host}, port {port}: {reason}; choose others with --host and --port"
        ) from None
    return bound


def make_server(app: Starlette) -> uvicorn.Server:
    """A server that logs no requests, and answers those that have come before it ends."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
            ws="none",
        )
    )


def serve(app: Starlette, bound: socket.socket) -> None:
    """Serves until a signal, which is raised again after the end."""
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    write_text(f"serving on http://{shown}:{port}/v1", sys.stderr)
    asyncio.run(make_server(app).serve([bound]))
