"""Training: the state, one jit-compiled step, and a loop that can stop anywhere and go on.

Training is a pure function of the first state and of `batch_at`, so a run that stopped and went on
from a checkpoint ends with the same bits as one that never stopped.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.config import TrainConfig
from rag_jax.runtime import signals
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.chips import find_peak
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.errors import Preempted, RagJaxError
from rag_jax.runtime.files import open_atomic, to_json, write_json
from rag_jax.runtime.hosts import is_first, preempted
from rag_jax.runtime.sharding import Shardings, constrain, shardings_like, shardings_of

LossFunction = Callable[[PyTree, PyTree, Any], tuple[Float[Array, ""], Mapping[str, Array]]]


class TrainState(NamedTuple):
    """What a step changes: the count of steps taken, the trained arrays, the optimiser's own."""

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


def make_optimizer(settings: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) with gradients clipped by their global norm.

    Weight decay leaves vectors (norm scales, biases) alone, as is usual.
    """
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            make_schedule(settings, total_steps),
            weight_decay=settings.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def init_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the optimiser's arrays lie where their parameters do.

    `params` are copied: a step gives its state's memory to the next state, which would otherwise
    take the caller's arrays away.
    """

    # Bound to their devices, as arrays from a checkpoint are: a run that had both kinds would
    # compile every program twice.
    described = describe_state(params, optimizer)
    build = jax.jit(
        partial(_build_state, optimizer),
        out_shardings=jax.tree.map(lambda x: x.sharding, described),
    )
    return build(params)


def describe_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """What `init_state` gives, as descriptions of arrays."""
    return shardings_like(jax.eval_shape(partial(_build_state, optimizer), params), params)


def _build_state(optimizer: optax.GradientTransformation, params: PyTree) -> TrainState:
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


@partial(jax.jit, static_argnames=("loss_fn", "places"))
def compute_gradients(
    loss_fn: LossFunction, params: PyTree, frozen: PyTree, arrays: Any, *, places: Shardings
) -> tuple[PyTree, dict[str, Array]]:
    """Gradients by `params`, and the loss among the metrics; two runs may share one program.

    Args:
        places: of `params`; the gradients come to lie there too.
    """
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, arrays)
    return constrain(grads, places), {"loss": loss, **metrics}


@partial(jax.jit, donate_argnames="total")
def add_gradients(total: PyTree, part: PyTree) -> PyTree:
    """The gradients of two microbatches together."""
    return jax.tree.map(jnp.add, total, part)


@partial(jax.jit, static_argnames=("optimizer", "places"), donate_argnames="state")
def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, grads: PyTree, *, places: Shardings
) -> tuple[TrainState, Float[Array, ""]]:
    """The state after a step, lying at the same `places`, and the gradients' norm."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = TrainState(state.step + 1, params, opt_state)
    return constrain(state, places), optax.tree.norm(grads)


def make_step(
    losses: Mapping[str, LossFunction], optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PyTree, Sequence[tuple[str, Any]]], tuple[TrainState, dict[str, Array]]]:
    """The step `step(state, frozen, parts) -> (state, metrics)`, compiled once for a part's shape.

    A batch is a list of microbatches `(name of its loss, arrays)`, taken one after the other, so
    that the memory for activations is bounded and no row is padded to the longest of its batch.
    Losses, metrics and gradients of the parts add up. The state passed in is used up (its buffers
    are donated).

    Args:
        losses: for each kind of microbatch `loss_fn(params, frozen, arrays) -> (loss, metrics)`:
            the scalar to minimise by `params`, the trained tree (all weights, or an adapter);
            `frozen` holds whatever else it needs; `metrics` are scalars for the log.
        optimizer: as from `make_optimizer`.
    """

    def step(state, frozen, parts):
        total, logged = None, {}
        places = shardings_of(state.params)
        for name, arrays in parts:
            grads, metrics = compute_gradients(
                losses[name], state.params, frozen, arrays, places=places
            )
            total = grads if total is None else add_gradients(total, grads)
            for key, value in metrics.items():
                logged[key] = logged[key] + value if key in logged else value
        state, norm = apply_gradients(optimizer, state, total, places=shardings_of(state))
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

    A step's metrics are read once the next step has been dispatched, so the device never waits.

    Args:
        state: used up.
        step_fn: `(state, batch) -> (state, metrics)`, with a scalar `"loss"` among the metrics.
        batch_at: gives step i's batch and its examples' ids; a pure function of i, from 0.
        total_steps: how many steps make the whole run.
        checkpoints: where it goes on from. Saved to every `checkpoint_every` steps, while the
            next ones are taken, and when Ctrl-C or SIGTERM stops the run.
        checkpoint_every: in steps.
        progress: such as `StageContext.progress`.
        log_path: JSON lines, one a step: `{"step", ...metrics}`. Beside it, as what differs from
            run to run, `speed.jsonl` has `{"step", "seconds", "gflops", "of_peak",
            "save_seconds"}`: the two in the middle achieved in the seconds not spent compiling, the
            last what the loop waited for a checkpoint before the step, which is no part of them.
        flops_at: operations of step i's matrix products.
        profile_steps: after the second step of this process, which has compiled most of what
            there is, so many are traced by JAX's profiler, into `profile` beside the log.

    Raises:
        RagJaxError: when the loss is not finite. The step, ids and metrics are written to
            `nonfinite.json` beside the log, and nothing after that step is saved.
        KeyboardInterrupt: on Ctrl-C, after the step under way and a checkpoint.
        Preempted: on SIGTERM, likewise.
    """
    found = checkpoints.restore_latest(state)
    first, state = found if found else (0, state)
    speed_path = log_path.with_name("speed.jsonl")
    if is_first():
        _cut_log(log_path, first)
        _cut_log(speed_path, first)
    pending: tuple[int, Sequence[str], Mapping[str, Array]] | None = None
    saved, waited = first, 0.0
    peak, clock = find_peak(_list_devices(state)), Clock()
    profiled = range(first + 2, min(first + 2 + profile_steps, total_steps))

    with (
        open(log_path if is_first() else os.devnull, "a", encoding="utf-8") as log,
        open(speed_path if is_first() else os.devnull, "a", encoding="utf-8") as speed,
        progress(total_steps, unit="steps", initial=first) as bar,
        checkpoints,
        # Among several processes one that stopped by itself would leave the others waiting.
        signals.hold() if jax.process_count() == 1 else contextlib.nullcontext([]) as held,
    ):

        def settle() -> None:
            """Waits for the last dispatched step; logs and checks its metrics."""
            nonlocal pending, clock, waited
            if pending is not None:
                step, ids, metrics = pending
                pending = None
                _log_step(log, log_path, step, ids, jax.device_get(metrics))
                measured = _measure_speed(clock, flops_at(step), peak)
                _write_line(speed, {"step": step, **measured, "save_seconds": waited})
                clock, waited = Clock(), 0.0
                bar.update(1)

        def save(step: int) -> None:
            nonlocal saved, clock, waited
            settle()
            if step > saved:
                checkpoints.save(step, state)
                waited, clock, saved = time.perf_counter() - clock.start, Clock(), step

        def stop(step: int, reason: type[BaseException]) -> None:
            save(step)
            raise reason

        for step in range(first, total_steps):
            if preempted(step):
                held.append(Preempted)
            if held:
                stop(step, held[0])
            if profiled and step == profiled[0]:
                settle()
                jax.profiler.start_trace(log_path.parent / "profile")
            batch, ids = batch_at(step)
            state, metrics = step_fn(state, batch)
            settle()
            if profiled and step == profiled[-1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            pending = (step, ids, metrics)
            if (step + 1) % checkpoint_every == 0 and step + 1 < total_steps:
                save(step + 1)
        settle()
        if held:
            stop(total_steps, held[0])
    return state


def _measure_speed(clock: Clock, flops: float, peak: float) -> dict[str, float]:
    """What the log says of a step since the clock was started; FLOP/s are those not compiling."""
    rate = flops / max(clock.read(), 1e-9)
    seconds = time.perf_counter() - clock.start
    return {"seconds": seconds, "gflops": rate / 1e9, "of_peak": rate / peak}


def _list_devices(state: TrainState) -> list[jax.Device]:
    return list(jax.tree.leaves(state)[0].sharding.device_set)


def _log_step(
    log: Any, path: Path, step: int, ids: Sequence[str], metrics: Mapping[str, Any]
) -> None:
    values = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(values["loss"]):
        path = path.with_name("nonfinite.json")
        # As text, for JSON has no NaN.
        texts = {name: str(value) for name, value in values.items()}
        write_json(path, {"step": step, "ids": list(ids), "metrics": texts})
        raise RagJaxError(
            f"the loss is {values['loss']} at step {step}, on examples {', '.join(ids)} "
            f"(saved in {path}); a lower learning rate or clip_norm may help"
        )
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    _write_line(log, {"step": step, **finite})


def _write_line(log: Any, record: Mapping[str, Any]) -> None:
    log.write(to_json(record) + "\n")
    log.flush()


def _cut_log(path: Path, first: int) -> None:
    """Drops the lines that steps from `first` on will write again, and a torn last line."""
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                if line.endswith("\n") and json.loads(line)["step"] < first:
                    kept.append(line)
    with open_atomic(path) as file:
        file.writelines(kept)
