"""Time spent on compilation, by program, and time spent on everything else."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Prepared(NamedTuple):
    """A program that became ready to run.

    Attributes:
        name: of its function.
        seconds: that it took, without tracing and lowering.
        read: whether it came from the cache of compiled programs, in place of being compiled.
    """

    name: str
    seconds: float
    read: bool


class _CompileClock:
    """Seconds that JAX spent on tracing, lowering and compiling. Nested calls count once."""

    EVENTS = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    # Comes before the last event, and is part of it, when the program was in the cache.
    CACHE_EVENT = "/jax/compilation_cache/cache_retrieval_time_sec"

    def __init__(self) -> None:
        self.total = 0.0
        self.xla = 0.0
        self.prepared: list[Prepared] = []
        self._read = False
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_duration(self, event: str, seconds: float, *, fun_name: str = "", **_: Any) -> None:
        if event == self.CACHE_EVENT:
            self.xla -= seconds
            self._read = True
        if event not in self.EVENTS:
            return
        if event == self.EVENTS[-1]:
            self.xla += seconds
            name = fun_name.removeprefix("jit(").removesuffix(")")
            self.prepared.append(Prepared(name, seconds, self._read))
            self._read = False
        start = time.monotonic() - seconds
        # Tracing a function reports its inner functions first, and then a span that includes them.
        while self._spans and self._spans[-1][0] >= start:
            self.total -= self._spans.pop()[1]
        self._spans.append((start, seconds))
        self.total += seconds


_clock = _CompileClock()


def compile_seconds() -> float:
    """Seconds that this process has spent on tracing, lowering and compiling so far."""
    return _clock.total


def xla_seconds() -> float:
    """The part of `compile_seconds` that XLA compiled, without tracing and reading the cache."""
    return _clock.xla


def list_prepared() -> Sequence[Prepared]:
    """Every program that became ready to run in this process so far, in order."""
    return _clock.prepared


class Clock:
    """A stopwatch that starts when created and excludes the time spent on compilation."""

    def __init__(self) -> None:
        self.start, self.compiling = time.perf_counter(), compile_seconds()

    def read(self) -> float:
        """Seconds since the start, compilation excluded."""
        return time.perf_counter() - self.start - (compile_seconds() - self.compiling)
