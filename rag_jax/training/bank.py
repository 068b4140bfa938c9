"""Training a bank: N adapters at once, each on data of its own, over one frozen base.

A step is one compiled program, the `jax.vmap` of a step of one adapter. The base is the same for
all, so its products stay those of one large matrix of all N adapters' tokens with each kernel, and
no gradient of the base is ever made. On a mesh a bank is split like a batch: by `shard_batch`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from rag_jax.runtime.sharding import Shardings, constrain, shardings_like, shardings_of
from rag_jax.training.loop import LossFunction, TrainState

BankStep = Callable[[TrainState, PyTree, Any], tuple[TrainState, dict[str, Array]]]


def init_bank_state(bank: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step: that of each adapter, every array with a leading axis `[N]`.

    Args:
        bank: arrays `[N, ...]`, as from `lora.init_bank`; copied, as a step uses its state up.
        optimizer: which sees one adapter at a time: it clips each one's own norm.
    """
    bank = jax.tree.map(jnp.asarray, bank)
    described = shardings_like(jax.eval_shape(partial(_build_states, optimizer), bank), bank)
    return _init(optimizer, bank, places=shardings_of(described))


def make_bank_step(loss_fn: LossFunction, optimizer: optax.GradientTransformation) -> BankStep:
    """The step `step(state, frozen, arrays) -> (state, metrics)`, compiled once for each shape.

    Adapter i ends as if it had been trained alone. A loss that is not finite spoils its own adapter
    only; look for it in the metrics. The state passed in is used up (its buffers are donated).

    Args:
        loss_fn: of one adapter, as for `training.make_step`: `loss_fn(params, frozen, arrays) ->
            (loss, metrics)`. Here `frozen` is shared by all, `arrays` have a leading axis `[N]`
            that it does not see, and the metrics come out `[N]`.
        optimizer: as for `init_bank_state`.
    """

    def step(state, frozen, arrays):
        return _step(loss_fn, optimizer, state, frozen, arrays, places=shardings_of(state))

    return step


def _build_states(optimizer: optax.GradientTransformation, bank: PyTree) -> TrainState:
    def build(adapter):
        adapter = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), adapter)
        return TrainState(jnp.int32(0), adapter, optimizer.init(adapter))

    return jax.vmap(build)(bank)


@partial(jax.jit, static_argnames=("optimizer", "places"))
def _init(
    optimizer: optax.GradientTransformation, bank: PyTree, *, places: Shardings
) -> TrainState:
    return constrain(_build_states(optimizer, bank), places)


@partial(jax.jit, static_argnames=("loss_fn", "optimizer", "places"), donate_argnames="state")
def _step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: PyTree,
    arrays: Any,
    *,
    places: Shardings,
) -> tuple[TrainState, dict[str, Array]]:
    def step(state, arrays):
        differentiate = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = differentiate(state.params, frozen, arrays)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {"loss": loss, **metrics}

    state, metrics = jax.vmap(step)(state, arrays)
    return constrain(state, places), metrics
