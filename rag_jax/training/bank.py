"""Training a bank: N adapters at once, each on its own data, over one frozen base.

A step is one compiled program, the `jax.vmap` of a step of one adapter. All adapters share the
base: the base's matrix products take the tokens of all N adapters together, and the base gets no
gradient. On a mesh a bank is split like a batch, by `shard_batch`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from rag_jax.runtime.sharding import Shardings, constrain, shardings_like, shardings_of
from rag_jax.training.loop import LossFunction, TrainState, build_state

BankStep = Callable[[TrainState, PyTree, Any], tuple[TrainState, dict[str, Array]]]


def init_bank_state(bank: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of N adapters before the first step; every array has a leading axis `[N]`.

    The bank, as from `lora.init_bank`, is copied, because a step donates its state. The optimiser
    updates one adapter at a time, so clipping is by each adapter's own norm.
    """
    bank = jax.tree.map(jnp.asarray, bank)
    return _init(optimizer, bank, shardings=shardings_of(abstract_bank_state(bank, optimizer)))


def abstract_bank_state(
    bank: PyTree, optimizer: optax.GradientTransformation
) -> PyTree[jax.ShapeDtypeStruct]:
    """The arrays of `init_bank_state`, described; of a bank that is there or described itself."""
    return shardings_like(jax.eval_shape(partial(_build_states, optimizer), bank), bank)


def make_bank_step(loss_fn: LossFunction, optimizer: optax.GradientTransformation) -> BankStep:
    """The step `step(state, frozen, arrays) -> (state, metrics)`, compiled once for each shape.

    Adapter i ends as if it had been trained alone. A loss that is not finite spoils only its own
    adapter, and shows in the metrics. The state's buffers are donated.

    Args:
        loss_fn: the loss of one adapter, `loss_fn(params, frozen, arrays) -> (loss, metrics)`, as
            for `loop.make_step`. All adapters share `frozen`. `arrays` passed to the step have a
            leading axis `[N]`, over which `loss_fn` is mapped; the metrics are `[N]`.
    """

    def step(state, frozen, arrays):
        shardings = shardings_of(state)
        return take_bank_step(loss_fn, optimizer, state, frozen, arrays, shardings=shardings)

    return step


def _build_states(optimizer: optax.GradientTransformation, bank: PyTree) -> TrainState:
    return jax.vmap(partial(build_state, optimizer))(bank)


@partial(jax.jit, static_argnames=("optimizer", "shardings"))
def _init(
    optimizer: optax.GradientTransformation, bank: PyTree, *, shardings: Shardings
) -> TrainState:
    return constrain(_build_states(optimizer, bank), shardings)


@partial(jax.jit, static_argnames=("loss_fn", "optimizer", "shardings"), donate_argnames="state")
def take_bank_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: PyTree,
    arrays: Any,
    *,
    shardings: Shardings,
) -> tuple[TrainState, dict[str, Array]]:
    """The compiled step of `make_bank_step`."""

    def step(state, arrays):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = differentiate(state.params, frozen, arrays)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": loss, **metrics}

    state, metrics = jax.vmap(step)(state, arrays)
    return constrain(state, shardings), metrics
