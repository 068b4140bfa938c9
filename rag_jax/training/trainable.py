"""Trainable parameters: full weights or a LoRA adapter, and how to merge them with frozen ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from rag_jax import lora
from rag_jax.config import TuningConfig
from rag_jax.models.int8 import describe_floats, is_quantized
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import Rules, abstract_params, place_like, shard_params


@dataclass(frozen=True, eq=False)
class Trainable:
    """What a training run optimises, and the model's parameters that come out of it.

    Attributes:
        frozen: the parameters that the loss reads; None where all weights are trained.
        init: `base -> trained`, the tree to optimise before the first step.
        merge: `(trained, base) -> params`, the model's parameters; called inside `jax.jit`.
        rules: how the trained tree is split over the mesh.
        rates: factors on the learning rate, by the name of a part of the trained tree.
    """

    base: PyTree
    frozen: PyTree
    init: Callable[[PyTree], PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    rules: Rules
    mesh: Mesh
    rates: Mapping[str, float] = field(default_factory=dict)

    def start(self) -> PyTree[Array]:
        """The trained tree before the first step, on the mesh."""
        return shard_params(self.init(self.base), self.mesh, self.rules)

    def abstract(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the trained tree."""
        return abstract_params(jax.eval_shape(self.init, self.base), self.mesh, self.rules)

    def load(self, folder: Path) -> PyTree[Array]:
        """Reads the trained tree that `fit` saved; raises a RagJaxError as `load_tree`."""
        return load_tree(folder, self.abstract())

    def load_merged(self, folder: Path) -> PyTree[Array]:
        """The model's parameters with the trained tree of `load`, each where the base's lies.

        What is not trained is shared.
        """
        merged = self.merge(self.load(folder), self.base)  # a program would copy what it passes on
        return place_like(merged, self.base)


def make_trainable(
    tuning: TuningConfig, params: PyTree, *, rules: Rules, mesh: Mesh, seed: int, dtype: Any
) -> Trainable:
    """The trainable parameters of one model, by the run's tuning settings.

    `seed` is that of an adapter's random start, and `dtype` that of the merged parameters.
    """
    init = partial(init_trained, tuning, seed=seed)
    merge = partial(merge_trained, tuning, dtype=dtype)
    return Trainable(params, None if tuning.mode == "full" else params, init, merge, rules, mesh)


def train_all(params: PyTree, *, rules: Rules, mesh: Mesh) -> Trainable:
    """All of some parameters, whatever models they are of.

    Raises:
        RagJaxError: they are narrower than float32, in which small updates vanish.
    """
    for leaf in jax.tree.leaves(params):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
            raise RagJaxError(
                f"the weights are {leaf.dtype}, in which small updates vanish: load the model in "
                "float32 to train it"
            )
    return Trainable(params, None, lambda params: params, lambda trained, _: trained, rules, mesh)


def set_passes(model: Decoder | Bart, tuning: TuningConfig) -> Decoder | Bart:
    """The model with passes as the tuning settings have them, for a loss."""
    return model.clone(remat=tuning.remat, scan_layers=tuning.scan_layers)


def init_trained(tuning: TuningConfig, params: PyTree, *, seed: int) -> PyTree[Array]:
    """The trained tree before the first step: the weights, or an adapter that changes nothing yet.

    The tree is float32 whatever the model's dtype: small updates vanish in bfloat16.

    Raises:
        RagJaxError: no kernel's path matches `tuning.targets`, or all weights are to be trained and
            are in int8.
    """
    if tuning.mode == "full" and is_quantized(params):
        raise RagJaxError(
            "config.tuning.mode='full': the weights are in int8 and cannot be trained; set it to "
            "'lora', or config.model.int8 to False"
        )
    if tuning.mode == "full":
        return cast(params, jnp.float32)
    targets, key = f".*({tuning.targets})/kernel", jax.random.key(seed)
    try:
        adapter = lora.init(key, describe_floats(params), targets=targets, rank=tuning.rank)
    except ValueError as error:
        raise RagJaxError(f"config.tuning.targets={tuning.targets!r}: {error}") from error
    return cast(adapter, jnp.float32)


def merge_trained(
    tuning: TuningConfig, trained: PyTree, base: PyTree, *, dtype: Any
) -> PyTree[Array]:
    """The model's parameters in `dtype`; `base` is unused where all weights are trained."""
    trained = cast(trained, dtype)
    return trained if tuning.scale is None else lora.apply(base, trained, scale=tuning.scale)


def cast(tree: PyTree[Array], dtype: Any) -> PyTree[Array]:
    """A tree's arrays in another dtype; arrays that have the dtype already are not copied."""
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), tree)
