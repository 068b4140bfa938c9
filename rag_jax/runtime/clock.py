"""How long JAX has been compiling, and everything else took."""

import time
from typing import Any

import jax


class _CompileClock:
    """Seconds that JAX spent on tracing, lowering and compiling, nested calls counted once."""

    EVENTS = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )

    def __init__(self) -> None:
        self.total = 0.0
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def _on_duration(self, event: str, seconds: float, **_: Any) -> None:
        if event not in self.EVENTS:
            return
        start = time.monotonic() - seconds
        # Tracing a function reports the functions within it first: those seconds are its own too.
        while self._spans and self._spans[-1][0] >= start:
            self.total -= self._spans.pop()[1]
        self._spans.append((start, seconds))
        self.total += seconds


_clock = _CompileClock()


def compile_seconds() -> float:
    """Seconds this process has spent so far on tracing and compiling for JAX."""
    return _clock.total


class Clock:
    """Seconds since it was made, those spent on compiling left out."""

    def __init__(self):
        self.start, self.compiling = time.perf_counter(), compile_seconds()

    def read(self) -> float:
        return time.perf_counter() - self.start - (compile_seconds() - self.compiling)
