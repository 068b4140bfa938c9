"""Descriptions of a run's arrays: models without weights, inputs of steps, caches, loop states."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rag_jax.decoding.cache import Cache, grow, init_cache
from rag_jax.models import Pretrained
from rag_jax.models.int8 import quantize_layers
from rag_jax.models.io.architectures import Config, get_rules, make_model
from rag_jax.models.io.sizes import describe_params, find_pooling, find_sizes
from rag_jax.models.nn.pooling import Pooling
from rag_jax.runtime.sharding import Rules, abstract_params

QUESTION = 64  # tokens, rounded up, of the longest question: those of all the papers' datasets


class AbstractModels:
    """Models of a planning session, without weights."""

    mesh: Mesh
    choose_rules: Callable[[Config], Rules]

    def load_model(self, name: str, *, dtype: Any = None, int8: bool = False) -> Pretrained:
        """A published model's sizes, or those of a folder, without its weights and tokenizer."""
        config, rules = find_sizes(name), self.choose_rules(find_sizes(name))
        options = {"dtype": dtype or jnp.float32, "rules": rules, "int8": int8}
        options["pooling"] = find_pooling(name)
        return describe_model(config, self.mesh, **options)


def describe_model(
    config: Config,
    mesh: Mesh,
    *,
    dtype: Any = jnp.float32,
    rules: Rules | None = None,
    int8: bool = False,
    pooling: Pooling | None = None,
) -> Pretrained:
    """A model whose parameters are descriptions of arrays; it has no tokenizer.

    Args:
        rules: as for `load`.
        int8: as in `ModelConfig`.
        pooling: how the model embeds texts, where its files say so.
    """
    dense = pooling.dense if pooling else ()
    shapes = describe_params(config, jnp.dtype(dtype), dense)
    shapes = jax.eval_shape(quantize_layers, shapes) if int8 else shapes
    params = abstract_params(shapes, mesh, get_rules(config) if rules is None else rules)
    model = make_model(config)
    model = model.clone(pooling=pooling) if pooling else model
    return Pretrained(config, model, params, None, "")


def copy(tree: PyTree) -> PyTree:
    """Descriptions of other arrays of the same kind."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def split_rows(tree: PyTree, mesh: Mesh, *, heads: bool = False) -> PyTree[jax.ShapeDtypeStruct]:
    """Arrays as `shard_batch` splits them: by rows over `data` where that divides the rows.

    With `heads`, arrays of four axes, a cache's keys and values, are also split by their heads over
    `model`, as the projections leave them.
    """

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        axes = ("data", "model") if heads and leaf.ndim == 4 else ("data",)
        sizes = zip(axes, leaf.shape, strict=False)
        spec = (axis if size % mesh.shape[axis] == 0 else None for axis, size in sizes)
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def describe_inputs(
    function: Callable[..., Any], mesh: Mesh, sizes: Mapping[str, int], *args: Any, **kwargs: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that a jitted step still needs, by its annotations, such as `Int[Array, "B T"]`.

    `args` and `kwargs` are there already. `sizes` are those of the axes that annotations name; an
    axis without a size raises a KeyError.
    """
    signature = inspect.signature(function)
    given = signature.bind_partial(*args, **kwargs).arguments
    wanted = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is parameter.empty
    }
    return split_rows({name: _describe(array, sizes) for name, array in wanted.items()}, mesh)


def _describe(array: Any, sizes: Mapping[str, int]) -> jax.ShapeDtypeStruct:
    """An annotated array, in the dtype that the project uses for the annotation's kind."""
    kinds = {"bool": jnp.bool_, "int": jnp.int32, "float": jnp.float32}
    dtype = next(dtype for kind, dtype in kinds.items() if any(kind in d for d in array.dtypes))
    return jax.ShapeDtypeStruct([sizes[axis] for axis in array.dim_str.split()], dtype)


def describe_cache(
    lm: Pretrained, mesh: Mesh, rows: int, slots: int, prefix: Cache | None = None
) -> Cache:
    """The cache of rows that have read `slots` tokens."""

    def build(prefix: Cache | None) -> Cache:
        dtype = lm.params["embed"]["embedding"].dtype
        return grow(init_cache(lm.model, rows, dtype=dtype, prefix=prefix), slots)

    return describe_state(build, mesh, prefix, prefix=prefix)


def describe_state(
    build: Callable[..., Any], mesh: Mesh, *args: Any, prefix: Cache | None = None
) -> Any:
    """The first state of a loop, or a cache, that `build` makes of `args`.

    The state's own cache shares `prefix` as its prefix.
    """

    def split(node: Any) -> Any:
        if not isinstance(node, Cache):
            return split_rows(node, mesh)
        return replace(split_rows(replace(node, prefix=None), mesh, heads=True), prefix=prefix)

    state = jax.eval_shape(build, *args)
    return jax.tree.map(split, state, is_leaf=lambda node: isinstance(node, Cache))


def change(config: Any, path: str, value: Any) -> tuple[str, Any]:
    """A setting's flag, and the config that it makes."""
    name, _, inner = path.partition(".")
    changed = change(getattr(config, name), inner, value)[1] if inner else value
    return f"--config.{path}={value}", replace(config, **{name: changed})


def halve(config: Any, path: str) -> tuple[str, Any]:
    """The flag, and the config, with which a setting is half as large."""
    return change(config, path, max(1, attrgetter(path)(config) // 2))


def list_lighter(config: Any, batch: str) -> Iterator[tuple[str, Any]]:
    """The changes that let gradients need less: activations computed again, and a smaller batch.

    Args:
        batch: the setting whose half makes smaller batches.
    """
    if config.tuning.remat != "full":
        yield change(config, "tuning.remat", "full")
    yield halve(config, batch)


def list_wider(config: Any) -> Iterator[tuple[str, Any]]:
    """The changes that let any program need less: a wider `model` axis, and adapters."""
    yield change(config, "mesh.model", 2 * max(config.mesh.model, 1))
    if config.tuning.mode == "full":
        yield change(config, "tuning.mode", "lora")
