"""Peak performance of devices: known constants for accelerators, a measurement for CPUs."""

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rag_jax.runtime.errors import RagJaxError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Limits of a TPU chip, from the vendor's documentation.

    Attributes:
        flops: peak bfloat16 FLOP/s. A multiply-add counts as two.
        bandwidth: memory bandwidth, in bytes per second.
        memory: memory that a program may use, in bytes, as the TPU compiler reports the limit.
        links: bandwidth to neighbouring chips, summed over all links, in bytes per second.
    """

    flops: float
    bandwidth: float
    memory: float
    links: float


# By `jax.Device.device_kind`. JAX shows the two cores of a v4 or v5p as one device.
_CHIPS = {
    "TPU v4": Chip(275e12, 1.228e12, 31.25 * GIB, 300e9),
    "TPU v5": Chip(459e12, 2.765e12, 95.74 * GIB, 600e9),
    "TPU v5 lite": Chip(197e12, 0.819e12, 15.75 * GIB, 200e9),
    "TPU v6 lite": Chip(918e12, 1.640e12, 31.25 * GIB, 448e9),
}
# Peak FLOP/s of dense matrix products with bfloat16 inputs.
_GPU_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def find_chip(device: jax.Device) -> Chip:
    """The limits of a TPU; a RagJaxError for other devices."""
    kind = device.device_kind
    if kind not in _CHIPS:
        known = ", ".join(_CHIPS)
        raise RagJaxError(f"the limits of a {kind} are not known, only those of {known}")
    return _CHIPS[kind]


def find_peak(devices: Sequence[jax.Device]) -> float:
    """Peak FLOP/s of matrix products of several devices of the same kind, summed."""
    kind = devices[0].device_kind
    if kind in _CHIPS:
        return len(devices) * _CHIPS[kind].flops
    for name, flops in _GPU_FLOPS.items():
        if name in kind:
            return len(devices) * flops
    # Not multiplied, because devices that JAX simulates on one CPU share the cores.
    return _measure_peak()


@functools.cache
def _measure_peak() -> float:
    """FLOP/s of a float32 product of 2048 by 2048, median of five runs: half a second on a CPU."""
    size = 2048
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)
