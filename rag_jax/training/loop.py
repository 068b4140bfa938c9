"""The training loop: a state, jit-compiled steps, checkpoints, logs.

Training is a pure function of the first state and of `batch_at`. A run that continues from a
checkpoint therefore ends with the same bits as a run that was never interrupted.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.config import ConstantTrainConfig, TrainConfig
from rag_jax.runtime import signals
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.chips import find_peak
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import open_atomic, to_json, write_json
from rag_jax.runtime.hosts import is_first, preempted
from rag_jax.runtime.outside import parsing, require_file
from rag_jax.runtime.sharding import Shardings, constrain, shardings_like, shardings_of
from rag_jax.runtime.track import Tracker, open_tracker

LossFunction = Callable[[PyTree, PyTree, Any], tuple[Float[Array, ""], Mapping[str, Array]]]


class TrainState(NamedTuple):
    """What a training step updates: the number of steps taken, the trained tree, the optimiser."""

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree


def make_schedule(settings: TrainConfig, total_steps: int) -> optax.Schedule:
    """The learning rate at each step: a linear warm-up, then a linear decay to 0 after the last.

    The first step's rate is already above 0, so that no step is wasted.
    """
    warmup = max(1, round(settings.warmup_fraction * total_steps))
    decay = max(1, total_steps - warmup)

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        rising = (step + 1) / warmup
        falling = (total_steps - step) / decay
        return settings.learning_rate * jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)

    return schedule


def _is_decayed(path: tuple[Any, ...], leaf: Array) -> bool:
    """Whether a parameter shrinks: a matrix, but no bias of one row, such as BART's of logits."""
    return leaf.ndim > 1 and not jax.tree_util.keystr(path[-1:], simple=True).endswith("bias")


def make_optimizer(
    settings: ConstantTrainConfig,
    total_steps: int,
    *,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019), by `TrainConfig` with a schedule and with clipping.

    Weight decay leaves vectors (norm scales) and all biases alone, as is usual. `rates` are factors
    on the learning rate, by the name of a part of the trained tree.
    """
    scheduled = isinstance(settings, TrainConfig)
    optimizer = optax.adamw(
        make_schedule(settings, total_steps) if scheduled else settings.learning_rate,
        weight_decay=settings.weight_decay,
        mask=partial(jax.tree_util.tree_map_with_path, _is_decayed),
    )
    if scheduled:
        optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optimizer)
    for part, rate in rates.items():
        is_part = lambda params, part=part: {name: name == part for name in params}  # noqa: E731
        optimizer = optax.chain(optimizer, optax.masked(optax.scale(rate), is_part))
    return optimizer


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; optimiser arrays are sharded as their parameters are.

    `params` are copied, because a step donates its state's buffers to the next state.
    """
    # Committed to their devices, as arrays from a checkpoint are: with both kinds of arrays every
    # program would be compiled twice.
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer))
    return jax.jit(partial(build_state, optimizer), out_shardings=shardings)(params)


def abstract_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, dtypes and shardings of the state that `init_state` gives."""
    return shardings_like(jax.eval_shape(partial(build_state, optimizer), params), params)


def build_state(optimizer: optax.GradientTransformation, params: PyTree) -> TrainState:
    """The state before the first step, for use inside `jax.jit`."""
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@partial(jax.jit, static_argnames=("loss_fn", "shardings"))
def compute_gradients(
    loss_fn: LossFunction, params: PyTree, frozen: PyTree, arrays: Any, *, shardings: Shardings
) -> tuple[PyTree, dict[str, Array]]:
    """Gradients of a microbatch, sharded like `params`, and metrics with the loss among them."""
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, arrays)
    return constrain(grads, shardings), {"loss": loss, **metrics}


@partial(jax.jit, donate_argnames="total")
def add_gradients(total: PyTree, part: PyTree) -> PyTree:
    """The sum of two microbatches' gradients."""
    return jax.tree.map(jnp.add, total, part)


@partial(jax.jit, static_argnames=("optimizer", "shardings"), donate_argnames="state")
def apply_gradients(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: PyTree,
    *,
    shardings: Shardings,
) -> tuple[TrainState, Float[Array, ""]]:
    """The state after a step, with the same `shardings`, and the gradients' norm."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(state.step + 1, params, opt_state)
    return constrain(state, shardings), optax.tree.norm(grads)


def make_step(
    losses: Mapping[str, LossFunction], optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PyTree, Sequence[tuple[str, Any]]], tuple[TrainState, dict[str, Array]]]:
    """The step `step(state, frozen, microbatches) -> (state, metrics)`, compiled once a shape.

    A batch is a list of microbatches `(name of its loss, arrays)`, computed one after the other.
    That bounds the memory for activations, and no row is padded to the longest of its batch.
    Losses, metrics and gradients of the microbatches add up. The state's buffers are donated.

    Args:
        losses: for each kind of microbatch `loss_fn(params, frozen, arrays) -> (loss, metrics)`.
            The loss is a scalar to minimise with respect to `params`, the trained tree; `frozen`
            holds the other parameters; `metrics` are scalars for the log.
    """

    def step(state, frozen, microbatches):
        total, logged = None, {}
        shardings = shardings_of(state.params)
        for name, arrays in microbatches:
            grads, metrics = compute_gradients(
                losses[name], state.params, frozen, arrays, shardings=shardings
            )
            total = grads if total is None else add_gradients(total, grads)
            for key, value in metrics.items():
                logged[key] = logged[key] + value if key in logged else value
        state, norm = apply_gradients(optimizer, state, total, shardings=shardings_of(state))
        return state, {**logged, "grad_norm": norm}

    return step


def train(
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Array]]],
    batch_at: Callable[[int], tuple[Any, Sequence[str]]],
    *,
    total_steps: int,
    checkpoints: Checkpoints,
    checkpoint_every: int,
    progress: Callable[..., AbstractContextManager],
    log_path: Path,
    flops_at: Callable[[int], float],
    profile_steps: int = 0,
) -> TrainState:
    """Trains from the newest checkpoint, or else from `state`, to `total_steps`.

    Args:
        state: the first state; its buffers are donated.
        step_fn: `(state, batch) -> (state, metrics)`, with a scalar `"loss"` among the metrics.
        batch_at: gives a step's batch and its examples' ids; a pure function of the step, from 0.
        checkpoints: read at the start; written every `checkpoint_every` steps, while the next
            steps run, and when Ctrl-C or SIGTERM stops the training.
        log_path: JSON lines, one a step: `{"step", ...metrics}`. `speed.jsonl` in the same folder
            holds what differs from run to run: `{"step", "seconds", "gflops", "of_peak",
            "save_seconds"}`. `gflops` (1e9 operations a second) and `of_peak` are for the seconds
            without compiling; `save_seconds` is the wait for a checkpoint before the step and not
            part of `seconds`.
        flops_at: number of operations of a step's matrix products.
        profile_steps: number of steps to trace with `jax.profiler`, starting at the third step of
            this process, after compilation; written to `profile` in the log's folder. 0 disables
            profiling.

    Raises:
        RagJaxError: the loss or the gradients' norm is not finite. The step, the ids and the
            metrics are written to `nonfinite.json` in the log's folder; no later state is saved.
        KeyboardInterrupt: on Ctrl-C, after the present step and a checkpoint.
        Preempted: on SIGTERM, after the present step and a checkpoint.
    """
    first, state = checkpoints.restore_latest(state) or (0, state)
    peak = find_peak(list(jax.tree.leaves(state)[0].sharding.device_set))
    profiled = range(first + 2, min(first + 2 + profile_steps, total_steps))
    with (
        _open_log(log_path, first) as log,
        _open_log(log_path.with_name("speed.jsonl"), first) as speed,
        open_tracker(log_path) as tracker,
        progress(total_steps, unit="steps", initial=first) as bar,
        checkpoints,
        # One of several processes that stopped alone would leave the others waiting.
        signals.hold() if jax.process_count() == 1 else contextlib.nullcontext([]) as held,
    ):
        logs = log, speed, tracker, log_path
        recorder = _Recorder(*logs, bar, checkpoints, first, flops_at, peak)

        def stop_if_signalled(step: int) -> None:
            if held:
                recorder.save(step, state)
                raise held[0]

        for step in range(first, total_steps):
            if preempted(step):
                held.append(Preempted)
            stop_if_signalled(step)
            if profiled and step == profiled[0]:
                recorder.settle()
                jax.profiler.start_trace(log_path.parent / "profile")
            batch, ids = batch_at(step)
            state, metrics = step_fn(state, batch)
            recorder.settle()
            if profiled and step == profiled[-1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            recorder.pending = step, ids, metrics
            if (step + 1) % checkpoint_every == 0 and step + 1 < total_steps:
                recorder.save(step + 1, state)
        recorder.settle()
        stop_if_signalled(total_steps)
    return state


@dataclass
class _Recorder:
    """The logs and checkpoints of a training, and the step that is dispatched but not yet logged.

    A step's metrics are read once the next step is dispatched, so the device never waits.
    """

    log: IO[str]
    speed: IO[str]
    tracker: Tracker
    log_path: Path
    bar: Any
    checkpoints: Checkpoints
    saved: int
    flops_at: Callable[[int], float]
    peak: float
    clock: Clock = field(default_factory=Clock)
    save_seconds: float = 0.0
    pending: tuple[int, Sequence[str], Mapping[str, Any]] | None = None

    def settle(self) -> None:
        """Waits for the pending step; logs and checks its metrics."""
        if self.pending is None:
            return
        (step, ids, metrics), self.pending = self.pending, None
        values = jax.device_get(metrics)
        self.tracker.log(_log_step(self.log, self.log_path, step, ids, values), step)
        measured = _measure_speed(self.clock, self.flops_at(step), self.peak)
        speed = {"step": step, **measured, "save_seconds": self.save_seconds}
        print(to_json(speed), file=self.speed, flush=True)
        self.clock, self.save_seconds = Clock(), 0.0
        self.bar.set_postfix_str(f"loss {float(values['loss']):.4f}", refresh=False)
        self.bar.update(1)

    def save(self, step: int, state: TrainState) -> None:
        """Logs the pending step and saves the state after it, unless the state is saved already."""
        self.settle()
        if step > self.saved:
            self.checkpoints.save(step, state)
            self.save_seconds = time.perf_counter() - self.clock.start
            self.clock, self.saved = Clock(), step


def _measure_speed(clock: Clock, flops: float, peak: float) -> dict[str, float]:
    """The speed of a step since the clock was started; FLOP/s are without compiling."""
    rate = flops / max(clock.read(), 1e-9)
    seconds = time.perf_counter() - clock.start
    return {"seconds": seconds, "gflops": rate / 1e9, "of_peak": rate / peak}


def _log_step(
    log: Any, path: Path, step: int, ids: Sequence[str], metrics: Mapping[str, Any]
) -> dict[str, float | None]:
    """Writes a step's line; returns the metrics that it has, None for one that is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    watched = {"the loss": values["loss"], "the gradients' norm": values.get("grad_norm", 0.0)}
    if broken := [name for name, value in watched.items() if not math.isfinite(value)]:
        path = path.with_name("nonfinite.json")
        # As text, for JSON has no NaN.
        texts = {name: str(value) for name, value in values.items()}
        write_json(path, {"step": step, "ids": list(ids), "metrics": texts})
        raise RagJaxError(
            f"{broken[0]} is {watched[broken[0]]} at step {step}, on examples {', '.join(ids)} "
            f"(saved in {path}); a lower learning rate or clip_norm may help"
        )
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    print(to_json({"step": step, **finite}), file=log, flush=True)
    return finite


def _open_log(path: Path, first: int) -> IO[str]:
    """A log opened for appending, rid of a torn line and of the steps from `first` on."""
    if not is_first():
        return open(os.devnull, "a", encoding="utf-8")
    if path.exists():
        kept = []
        require_file(path)
        with parsing(path), open(path, encoding="utf-8") as file:
            for line in file:
                # A line that is no record of a step is torn or damaged, and goes.
                with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
                    if line.endswith("\n") and json.loads(line)["step"] < first:
                        kept.append(line)
        with open_atomic(path) as file:
            file.writelines(kept)
    return open(path, "a", encoding="utf-8")
