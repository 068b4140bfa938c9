"""Ray: a cluster that this machine belongs to, or one started on this machine for one command."""

import contextlib
import logging
import os
import re
import signal
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rag_jax.runtime.errors import RagJaxError

_ANSWERS_WITHIN = 20.0  # seconds in which a cluster has to answer
_LEAST_STORE = 80 << 20  # bytes of Ray's object store, which is not used: the least that Ray takes


@dataclass(frozen=True)
class RaySettings:
    """The workers that a command asks for.

    Attributes:
        address: "auto" or `host:port` of a cluster; None to start Ray on this machine.
        workers: their number; None for as many as have a place when the run begins.
        resources: what each takes, by Ray's names: "CPU", "GPU", "TPU", ...
    """

    address: str | None
    workers: int | None
    resources: Mapping[str, float]


@contextlib.contextmanager
def connect(settings: RaySettings) -> Iterator[int]:
    """Connects to a cluster, or starts Ray on this machine; gives the number of workers to ask for.

    Raises:
        RagJaxError: Ray is not installed, the cluster does not answer, or this machine has no place
            for a worker.
    """
    try:
        with _keep_handlers():
            import ray
    except ImportError:
        raise RagJaxError(
            "--executor=ray: Ray is not installed; install rag_jax with the extra ray: "
            "pip install 'rag_jax[ray]'"
        ) from None
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    if settings.address is None:
        options |= {"include_dashboard": False, "object_store_memory": _LEAST_STORE}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody of it
    address = _find_address(settings.address)
    with _keep_handlers(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of forks, which JAX's threads do not mind
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            if settings.address is None:
                raise RagJaxError(f"--executor=ray: Ray does not start here: {reason}") from None
            raise RagJaxError(
                f"--ray_address={address}: cannot be used: {reason}; if the cluster was started "
                "with a token, set RAY_AUTH_MODE=token"
            ) from None
    try:
        yield _count_workers(settings)
    finally:
        with _keep_handlers():
            ray.shutdown()


def _find_address(address: str | None) -> str:
    """The address for Ray, which waits for minutes for one that does not answer.

    Raises:
        RagJaxError: nothing answers there as Ray does.
    """
    if address is None:
        return "local"
    found = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if found == "auto":
        return found  # which Ray finds among this machine's processes
    if not re.fullmatch(r"[\w.\-\[\]:]+:\d+", found):
        raise RagJaxError(
            f"--ray_address={found}: must be auto or HOST:PORT, of the cluster that this machine "
            "belongs to"
        )
    import grpc

    with grpc.insecure_channel(found) as channel:
        try:
            grpc.channel_ready_future(channel).result(_ANSWERS_WITHIN)
        except grpc.FutureTimeoutError:
            raise RagJaxError(
                f"--ray_address={found}: no Ray cluster answers within {_ANSWERS_WITHIN:.0f} s; "
                "start one with `ray start --head`, or leave the flag out"
            ) from None
    return found


def _count_workers(settings: RaySettings) -> int:
    """The number of workers that are asked for.

    Raises:
        RagJaxError: this machine, without a cluster, has no place for one.
    """
    import ray

    need = settings.resources
    places = [
        min(int(node["Resources"].get(name, 0) // amount) for name, amount in need.items())
        for node in ray.nodes()
        if node["Alive"]
    ]
    if not sum(places) and settings.address is None:
        there = show_resources(ray.cluster_resources())
        raise RagJaxError(
            f"--worker_resources: a worker takes {show_resources(need)}, and this "
            f"machine has {there}"
        )
    return settings.workers or max(1, sum(places))


def show_resources(resources: Mapping[str, float]) -> str:
    """Resources as text, without those that Ray keeps for itself."""
    shown = {n: x for n, x in resources.items() if not re.match("node:|memory|object_store", n)}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(shown.items())) or "nothing"


@contextlib.contextmanager
def _keep_handlers() -> Iterator[None]:
    """Keeps this process's handlers of signals, in whose place Ray puts its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped = False
    try:
        yield
    except SystemExit:  # what Ray's handler of SIGTERM raises
        stopped = True
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stopped:
        signal.raise_signal(signal.SIGTERM)


def count_threads() -> str:
    """The number of threads of this process's numerical libraries, as their setting has it."""
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
