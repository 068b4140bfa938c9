"""Several hosts: every process runs the same program on the same values, and the first writes.

Each process reads the whole work folder, which all of them must see, and feeds its own devices.
Whatever decides what comes next (what is on disk, what a computation gave) is the same in all, for
they wait for each other before and after the first of them writes.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from rag_jax.runtime.errors import RagJaxError


def connect(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the other processes; to be called before anything else asks JAX for its devices.

    Args:
        coordinator: `host:port` of the first process; "auto" where the machines know of each other
            themselves, as on Cloud TPU.
        processes: how many there are; None with "auto".
        process: the number of this one, from 0; None with "auto".

    Raises:
        RagJaxError: a number is missing or out of range, or the others cannot be reached.
    """
    if coordinator == "auto":
        if processes is not None or process is not None:
            raise RagJaxError("--coordinator=auto: leave out --processes and --process")
        arguments = ()
    else:
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
            f"--coordinator={coordinator}: cannot join the others: {reason}"
        ) from None


def is_first() -> bool:
    """Whether this process writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Waits until every process has come to the same place; `what` names it in errors."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def preempted(step: int) -> bool:
    """Whether one of several processes got SIGTERM, as machines do that are about to be taken away.

    JAX listens for it there, and has all of them answer the same at the same step.

    Args:
        step: of the training, which all processes ask about, each after the one before.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def fetch(tree: PyTree[Array]) -> PyTree[np.ndarray]:
    """Arrays as the host's, whole in every process."""

    def gather(array: Any) -> np.ndarray:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))

    return jax.tree.map(gather, tree)
