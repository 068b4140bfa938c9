"""The programs of training: gradients of a microbatch, their sum, the optimiser's step."""

from typing import Any

from jaxtyping import PyTree

from rag_jax.config import TrainConfig
from rag_jax.planning.abstract import copy, split_rows
from rag_jax.planning.planner import Planner
from rag_jax.runtime.sharding import shardings_of
from rag_jax.training.loop import (
    LossFunction,
    abstract_state,
    add_gradients,
    apply_gradients,
    compute_gradients,
    make_optimizer,
)
from rag_jax.training.trainable import Trainable


def compile_training(
    planner: Planner,
    stage: str,
    trainable: Trainable,
    settings: TrainConfig,
    microbatches: dict[str, tuple[LossFunction, dict[str, Any]]],
    *held: PyTree,
) -> None:
    """Plans a training step.

    Args:
        stage: the start of the names of the step's programs.
        microbatches: by the name of their program, the loss and the arrays that the loss takes.
        held: arrays that stay in memory besides the training's.
    """
    params = trainable.abstract()
    optimizer = make_optimizer(settings, 1, rates=trainable.rates)
    state = abstract_state(params, optimizer)
    total = copy(params)  # gradients lie where their parameters do
    for name, (loss, arrays) in microbatches.items():
        planner.hold(*held, state, total)
        inputs = loss, state.params, trainable.frozen, split_rows(arrays, planner.mesh)
        shardings = shardings_of(state.params)
        planner.compile(name, compute_gradients, *inputs, shardings=shardings)
    planner.hold(*held, state)
    planner.compile(f"{stage}add gradients", add_gradients, total, copy(total))
    inputs, shardings = (optimizer, state, total), shardings_of(state)
    planner.compile(f"{stage}optimiser step", apply_gradients, *inputs, shardings=shardings)
