"""The server: its socket, and its life from the first program to a clean end."""

import asyncio
import logging
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.terminal import write_text
from rag_jax.serving.access import strip_brackets

_MOST_PORTS = 65_535
_PATIENCE = 30  # seconds for requests that have come, after a signal


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, on which nothing is accepted yet; port 0 is any that is free.

    Raises:
        RagJaxError: the port is in use, or there is no such address here.
    """
    if port > _MOST_PORTS:
        raise RagJaxError(f"--port={port}: must be at most {_MOST_PORTS}")
    try:
        named = strip_brackets(host)
        family, *_, address = socket.getaddrinfo(named, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter of what can be no name of a host
        raise _explain(error, host, port) from None
    return bound


def _explain(error: OSError | UnicodeError, host: str, port: int) -> RagJaxError:
    reason = getattr(error, "strerror", None) or str(error)
    return RagJaxError(f"{host}, port {port}: {reason}; choose others with --host and --port")


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
    """Serves until a signal, which is raised again after the end.

    Raises:
        RagJaxError: the port came into use after it was bound.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen()
    except OSError as error:
        raise _explain(error, host, port) from None
    shown = f"[{host}]" if ":" in host else host
    write_text(f"serving on http://{shown}:{port}/v1", sys.stderr)
    asyncio.run(make_server(app).serve([bound]))
