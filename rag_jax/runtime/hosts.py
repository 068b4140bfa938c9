"""Multi-process runs: every process runs the same program, and only the first process writes.

All processes must see the same work folder. Each process reads the whole folder and feeds its own
devices. Every decision (by files on disk, or by the result of a computation) is the same in all
processes, because all processes wait for each other before and after the first process writes.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from rag_jax.runtime.errors import RagJaxError

# A name or an IPv4 address, or an IPv6 address in brackets; and the port.
_ADDRESS = re.compile(r"(?:[^:\s\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")
_reading = False


def connect(coordinator: str, processes: int | None, process: int | None) -> None:
    """Connects this process with the other processes of the run.

    Must be called before any other use of JAX's devices.

    Args:
        coordinator: `host:port` of the first process, or "auto" to detect the cluster, as on TPU.
        processes: number of processes; None with "auto".
        process: index of this process, from 0; None with "auto".

    Raises:
        RagJaxError: the coordinator is no host with a port, a number is missing or out of range, or
            the other processes cannot be reached.
    """
    if coordinator == "auto":
        if processes is not None or process is not None:
            raise RagJaxError("--coordinator=auto: leave out --processes and --process")
        arguments = ()
    else:
        address = _ADDRESS.fullmatch(coordinator)
        if address is None or not 1 <= int(address[1]) <= 65_535:
            raise RagJaxError(
                f"--coordinator={coordinator}: must be HOST:PORT, with a port from 1 to 65535, or "
                "'auto'"
            )
        if processes is None or process is None or not 0 <= process < processes:
            raise RagJaxError(
                f"--coordinator={coordinator}: needs --processes=N and --process=I, from 0 to "
                f"N - 1, not {processes} and {process}"
            )
        arguments = (coordinator, processes, process)
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RagJaxError(
            f"--coordinator={coordinator}: cannot join the other processes: {reason}"
        ) from None


def is_first() -> bool:
    """Whether this process is the first process, which alone writes files and messages."""
    return jax.process_index() == 0 and not _reading


@contextlib.contextmanager
def only_reading() -> Iterator[None]:
    """Has this process write neither files nor messages, as if it were not the first one."""
    global _reading
    _reading = True
    try:
        yield
    finally:
        _reading = False


def wait_for_all(what: str) -> None:
    """Waits until every process has made the same call, with the same name `what` for errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def preempted(step: int) -> bool:
    """Whether one of several processes has received SIGTERM, as preemptible machines do.

    JAX listens for the signal, and gives the same answer for the same training step in all
    processes, which must call this function for every step, in order. A single process gets False.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def fetch(tree: PyTree[Array]) -> PyTree[np.ndarray]:
    """Copies arrays to the host. Every process gets the whole arrays, not only its own shards."""

    def gather(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(gather, tree)
