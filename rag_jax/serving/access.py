"""Who may ask: the token, and without one the name by which the server was called."""

import hmac
import ipaddress

from starlette.requests import Request

from rag_jax.runtime.errors import RagJaxError
from rag_jax.serving.errors import RequestError

VARIABLE = "RAG_JAX_TOKEN"


def check_address(host: str, token: str | None) -> None:
    """Raises a RagJaxError if others than this machine could ask without a token."""
    if token is None and not is_loopback(host):
        raise RagJaxError(
            f"--host={host}: others could ask this server; set {VARIABLE} to a secret that "
            "clients send, or leave --host out"
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as seen by this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(strip_brackets(host)).is_loopback
    except ValueError:
        return False


def strip_brackets(host: str) -> str:
    """An address without the brackets in which it stands in a URL; other hosts as they are."""
    return host.removeprefix("[").removesuffix("]")


def check_access(request: Request, token: str | None) -> None:
    """Raises a RequestError if a request does not have the token.

    Without a token, the server's own machine may ask; a page in its browser that had a name of its
    own lead to this machine may not.
    """
    if token is None:
        if not is_loopback(_read_host(request)):
            raise RequestError(403, "the header Host names another machine")
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    is_right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not is_right:
        raise RequestError(401, f"the token is wrong: send the server's {VARIABLE} as API key")


def _read_host(request: Request) -> str:
    host = request.headers.get("host", "")
    if host.startswith("["):  # IPv6
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
