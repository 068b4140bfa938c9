"""The programs of stages: gradients, their sum, the optimiser's step; and the encoder's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from rag_jax.config import ConstantTrainConfig
from rag_jax.models import Pretrained
from rag_jax.planning.abstract import copy, split_rows
from rag_jax.planning.batches import Shape, StageBatches
from rag_jax.planning.planner import Planner
from rag_jax.retrieval.encode import embed_batch
from rag_jax.runtime.sharding import shardings_of
from rag_jax.training.loop import (
    LossFunction,
    abstract_state,
    add_gradients,
    apply_gradients,
    compute_gradients,
    make_optimizer,
)
from rag_jax.training.rows import pack_rows
from rag_jax.training.trainable import Trainable


def compile_training(
    planner: Planner,
    batches: StageBatches,
    trainable: Trainable,
    settings: ConstantTrainConfig,
    losses: Mapping[str, LossFunction],
    make_arrays: Callable[[Shape], Mapping[str, Any]],
    *held: PyTree,
) -> None:
    """Plans a training: the gradients of every shape of its batches, their sum, and the update.

    Args:
        losses: by the kinds of the batches' shapes.
        make_arrays: a microbatch of a shape, as arrays or descriptions of arrays.
        held: arrays that stay in memory besides the training's.
    """
    stage, params = batches.stage, trainable.abstract()
    optimizer = make_optimizer(settings, 1, rates=trainable.rates)
    state = abstract_state(params, optimizer)
    total = copy(params)  # gradients lie where their parameters do
    for shape, runs in batches.runs.items():
        planner.hold(*held, state, total)
        arrays = split_rows(make_arrays(shape), planner.mesh)
        inputs = losses[shape.kind], state.params, trainable.frozen, arrays
        options = {"shardings": shardings_of(state.params), "runs": {stage: runs}}
        name = f"{stage}, gradients of {name_shape(shape)}"
        planner.compile(name, compute_gradients, *inputs, **options)
    planner.hold(*held, state)
    # A step of one microbatch adds nothing.
    added = sum(batches.runs.values()) - batches.steps
    if added > 0:
        both, runs = (total, copy(total)), {stage: added}
        planner.compile(f"{stage}, add gradients", add_gradients, *both, runs=runs)
    inputs, options = (optimizer, state, total), {"shardings": shardings_of(state)}
    options["runs"] = {stage: batches.steps}
    planner.compile(f"{stage}, optimiser step", apply_gradients, *inputs, **options)


def compile_rows(
    planner: Planner,
    batches: StageBatches,
    trainable: Trainable,
    settings: ConstantTrainConfig,
    loss: LossFunction,
    terms: Sequence[str],
    *held: PyTree,
) -> None:
    """Plans a training on rows, as `fit_rows` trains; `held` as for `compile_training`."""

    def make_arrays(shape: Shape) -> dict[str, Any]:
        targets = batches.packing.shapes[shape.kind].targets
        sizes = {"width": shape.width, "targets": targets, "batch": shape.rows}
        return pack_rows([], terms=terms, **sizes, scale=1.0, reduction="mean")

    inputs = trainable, settings, {"": loss}, make_arrays
    compile_training(planner, batches, *inputs, *held)


def compile_encoding(planner: Planner, batches: StageBatches, encoder: Pretrained) -> None:
    """Plans the encoding of a corpus: a program for every shape of its batches."""
    for shape, runs in batches.runs.items():
        inputs, sizes = (encoder.model, encoder.params), {"B": shape.rows, "T": shape.width}
        options = {"sizes": sizes, "runs": {batches.stage: runs}}
        name = f"{batches.stage}, embed {name_shape(shape)}"
        planner.compile(name, embed_batch, *inputs, **options)


def name_shape(shape: Shape) -> str:
    """A shape in a program's name, such as "pairs 16 x 1024"."""
    return f"{shape.kind} {shape.rows} x {shape.width}".lstrip()
