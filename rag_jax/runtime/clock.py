"""Time spent on compilation, and time spent on everything else."""

import time
from typing import Any

import jax


class _CompileClock:
    """Seconds that JAX spent on tracing, lowering and compiling. Nested calls count once."""

    EVENTS = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    # Part of the last event when the program was in the cache.
    CACHE_EVENT = "/jax/compilation_cache/cache_retrieval_time_sec"

    def __init__(self) -> None:
        self.total = 0.0
        self.xla = 0.0
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_duration(self, event: str, seconds: float, **_: Any) -> None:
        if event == self.CACHE_EVENT:
            self.xla -= seconds
        if event not in self.EVENTS:
            return
        if event == self.EVENTS[-1]:
            self.xla += seconds
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


class Clock:
    """A stopwatch that starts when created and excludes the time spent on compilation."""

    def __init__(self) -> None:
        self.start, self.compiling = time.perf_counter(), compile_seconds()

    def read(self) -> float:
        """Seconds since the start, compilation excluded."""
        return time.perf_counter() - self.start - (compile_seconds() - self.compiling)
