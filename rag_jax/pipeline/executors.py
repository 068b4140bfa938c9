"""The flags that say where the pieces of maps are made: in this process, or by workers of Ray.

Workers need JAX and Ray, which are imported when they are asked for; see `command`.
"""

import contextlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rag_jax.pipeline.ray_cluster import RaySettings
from rag_jax.runtime.errors import RagJaxError

FLAGS = {
    "executor": "where items are worked on: local, or ray",
    "ray_address": "the Ray cluster: auto, or HOST:PORT; without it Ray starts on this machine",
    "workers": "number of Ray's workers",
    "worker_resources": 'what each of Ray\'s workers takes, as JSON such as {"GPU": 1}',
}


def read_executor(options: Mapping[str, str | None]) -> RaySettings | None:
    """The workers that the flags ask for; None if this process is to do the work.

    Raises:
        RagJaxError: a flag has a value that it cannot have, or misses another one.
    """
    kind = options["executor"] or "local"
    if kind not in ("local", "ray"):
        raise RagJaxError(f"--executor={kind}: must be local or ray")
    given = [name for name in ("ray_address", "workers", "worker_resources") if options[name]]
    if kind == "local":
        if given:
            raise RagJaxError(f"--{given[0]}={options[given[0]]}: needs --executor=ray")
        return None
    workers = options["workers"]
    if workers is not None and (not workers.isdecimal() or not int(workers)):
        raise RagJaxError(f"--workers={workers}: must be a whole number of at least 1")
    if workers is None and options["worker_resources"] is None:
        raise RagJaxError(
            "--executor=ray: needs a number of workers by --workers=N, or what one takes by "
            "--worker_resources, such as '{\"GPU\": 1}', for as many as there are places"
        )
    resources = _read_resources(options["worker_resources"] or '{"CPU": 1}')
    return RaySettings(options["ray_address"] or None, workers and int(workers), resources)


def _read_resources(value: str) -> dict[str, float]:
    """Amounts of resources by Ray's names, from JSON."""
    try:
        read = json.loads(value)
        if not read or not all(_is_amount(amount) for amount in read.values()):
            raise ValueError
    except (ValueError, AttributeError):
        raise RagJaxError(
            f"--worker_resources={value}: must be JSON with an amount above 0 of each resource, "
            'such as {"GPU": 1}'
        ) from None
    return read


def _is_amount(value: Any) -> bool:
    # Ray shares out a part of one device, or whole ones.
    return type(value) in (int, float) and (0 < value < 1 or (value >= 1 and value == int(value)))


def open_executor(settings: RaySettings | None) -> AbstractContextManager[Any]:
    """The executor that a command asks for, None for this process; its workers end with the block.

    Raises:
        RagJaxError: as `ray_cluster.connect`.
    """
    if settings is None:
        return contextlib.nullcontext()
    from rag_jax.pipeline.ray_executor import open_ray

    return open_ray(settings)
