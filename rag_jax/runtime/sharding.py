"""Sharding of arrays over a mesh: the axis `data` splits batches, `model` splits matrices.

Weights are split over both axes, or over `model` alone (`keep_over_data`). The sharding of a
parameter follows from rules, which are pairs of a regular expression and a `PartitionSpec`. Exactly
one rule must match the parameter's path. Adapters and optimiser moments are sharded like their
parameter, because their paths contain the path of the parameter.

Programs run on the mesh in effect (`with jax.set_mesh(mesh)`). Without a mesh, or on a mesh of a
single device, the functions of this module that move or constrain arrays change nothing.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.settings import MeshConfig

Rules = Sequence[tuple[str, PartitionSpec]]
Shardings = tuple[jax.sharding.Sharding, ...]

_SPLIT_IN, _SPLIT_OUT = PartitionSpec("model", "data"), PartitionSpec("data", "model")
_WHOLE = PartitionSpec()
_DENSE = (r"dense_\d+/(kernel|bias)", _WHOLE)  # the layers of a pooling

# A product with its output split over `model` is followed by a product with its input split over
# `model`: the activations between the two stay on their device (Shoeybi et al. 2019, section 3).
DECODER_RULES: Rules = (
    (r"embed/embedding", _SPLIT_IN),
    (r"(embed|head)/(rows|columns|ids)", _WHOLE),  # `vocabulary.overlay_tokens`
    (r"layers_\d+/attention/(query|key|value)/kernel", _SPLIT_OUT),
    (r"layers_\d+/attention/output/kernel", _SPLIT_IN),
    (r"layers_\d+/ffn/(gate|up)/kernel", _SPLIT_OUT),
    (r"layers_\d+/ffn/down/kernel", _SPLIT_IN),
    (r"layers_\d+/attention/(query|key|value)/bias", _WHOLE),
    (r"(layers_\d+/(attention|ffn)(_output)?_norm|final_norm)/(scale|bias)", _WHOLE),
    (r"layers_\d+/attention/(query|key)_norm/scale", _WHOLE),
    (r"head/kernel", _SPLIT_OUT),
    _DENSE,
)
HEAD_RULES: Rules = ((r"head/.+", _WHOLE),)  # beside an encoder, a copy on every device
BERT_RULES: Rules = (
    (r"embed/(word|position|type)/embedding", _SPLIT_IN),
    (r"layers_\d+/attention/(query|key|value)/kernel", _SPLIT_OUT),
    (r"layers_\d+/attention/output/kernel", _SPLIT_IN),
    (r"layers_\d+/ffn/up/kernel", _SPLIT_OUT),
    (r"layers_\d+/ffn/down/kernel", _SPLIT_IN),
    (r"layers_\d+/(attention|ffn)/\w+/bias", _WHOLE),
    (r"(embed/norm|layers_\d+/(attention|ffn)_norm)/(scale|bias)", _WHOLE),
    (r"projection/kernel", _SPLIT_OUT),
    (r"projection/bias", _WHOLE),
    (r"near/embedding", _WHOLE),
    _DENSE,
)
MODERN_BERT_RULES: Rules = (
    (r"embed/embedding", _SPLIT_IN),
    (r"layers_\d+/(query|key|value|gate|up)/kernel", _SPLIT_OUT),
    (r"layers_\d+/(output|down)/kernel", _SPLIT_IN),
    (r"(layers_\d+/(attention|ffn)_norm|(embed|final)_norm)/scale", _WHOLE),
    _DENSE,
)
BART_RULES: Rules = (
    (r"(embed|(en|de)coder_position)/embedding", _SPLIT_IN),
    (r"\w+_layers_\d+/(cross_)?attention/(query|key|value)/kernel", _SPLIT_OUT),
    (r"\w+_layers_\d+/(cross_)?attention/output/kernel", _SPLIT_IN),
    (r"\w+_layers_\d+/ffn/up/kernel", _SPLIT_OUT),
    (r"\w+_layers_\d+/ffn/down/kernel", _SPLIT_IN),
    (r"\w+_layers_\d+/((cross_)?attention|ffn)/\w+/bias", _WHOLE),
    (r"((en|de)coder_norm|\w+_layers_\d+/\w+_norm)/(scale|bias)", _WHOLE),
    (r"logits_bias", _WHOLE),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh with the axes `data` and `model`, by default of all devices.

    Raises:
        RagJaxError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = choose_axes(config, len(devices))
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def choose_axes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The sizes of the axes of a mesh of a number of devices.

    Raises:
        RagJaxError: the product of the sizes is not the number of devices.
    """
    sizes = {"data": config.data, "model": config.model}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise RagJaxError(
            f"config.mesh.data={config.data} by config.mesh.model={config.model} does not fit "
            f"{devices} device(s): the product must be their number (-1 for all that remain)"
        )
    return sizes


def check_batches(mesh: Mesh | AbstractMesh, sizes: dict[str, int]) -> None:
    """Checks that the mesh divides the rows of batches, numbers by the names of their settings.

    Raises:
        RagJaxError: naming the first setting that is not a multiple of the mesh's `data` axis.
    """
    parts = dict(mesh.shape).get("data", 1)
    for name, size in sizes.items():
        if size % parts:
            raise RagJaxError(
                f"{name}={size} does not fit the mesh: make it a multiple of {parts}, the size of "
                "the data axis (config.mesh.data)"
            )


# Parameters.


def prefix_rules(prefix: str, rules: Rules) -> Rules:
    """Rules for parameters that are under a name of a larger tree, such as `generator/...`."""
    return tuple((f"{prefix}/(?:{regex})", spec) for regex, spec in rules)


def keep_over_data(rules: Rules) -> Rules:
    """The rules for weights that are split over `model` alone."""

    def drop(spec: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(None if axis == "data" else axis for axis in spec))

    return tuple((regex, drop(spec)) for regex, spec in rules)


def choose_spec(path: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The spec of a parameter, or of an adapter or optimiser moment that belongs to a parameter.

    An adapter's `a` is split like the input of its kernel, and `b` like the output, as the scales
    of a kernel in int8. If an axis does not divide the dimension in the rule, the axis splits the
    largest dimension that it does divide, if any.

    Args:
        path: names joined by `/`. Names before the path of the parameter are ignored.

    Raises:
        RagJaxError: no rule matches, or several do.
    """
    if not len(shape):
        return _WHOLE
    # With adapters, a kernel is `kernel/array`, see `lora.AdaptedKernel`. A factor is `kernel/a` in
    # a tree of adapters, and `lora_a` in a tree with the kernels.
    path = path.removesuffix("/array")
    factor = re.fullmatch(r"(.*/)(?:kernel/|lora_)([ab])", path)
    kernel = f"{factor[1]}kernel" if factor else path.removesuffix("_scale")
    matching = [spec for regex, spec in rules if re.search(rf"(?:^|/)(?:{regex})$", kernel)]
    if len(matching) != 1:
        raise RagJaxError(f"parameter {path}: {len(matching)} sharding rules match it, not one")
    if path.endswith("/kernel_scale"):  # of a kernel in int8: a number for each output
        return _fit(matching[0][1:], shape, mesh)
    spec = (*matching[0], *[None] * len(shape))[: len(shape)]
    if factor:
        spec = (spec[0], None) if factor[2] == "a" else (None, spec[1])
    return _fit(spec, shape, mesh)


def _fit(spec: Iterable[Any], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The spec with every axis moved to a dimension that it divides. Axes of size 1 are dropped."""
    sizes, placed = dict(mesh.shape), [[] for _ in shape]

    def place(axis: str, dimensions: Iterable[int]) -> bool:
        for i in dimensions:
            if shape[i] % math.prod(sizes[a] for a in (*placed[i], axis)) == 0:
                placed[i].append(axis)
                return True
        return False

    by_size = sorted(range(len(shape)), key=lambda i: -shape[i])
    requested = [
        (axis, i)
        for i, axes in enumerate(spec)
        for axis in ((axes,) if isinstance(axes, str) else axes or ())
        if sizes.get(axis, 1) > 1
    ]
    for axis in [axis for axis, i in requested if not place(axis, [i])]:
        place(axis, by_size)
    # JAX's canonical form: with two forms of the same spec every program would be compiled twice.
    entries = [None if not axes else axes[0] if len(axes) == 1 else tuple(axes) for axes in placed]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def abstract_params(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings by the rules of the arrays or descriptions of a tree.

    Raises:
        RagJaxError: no rule matches a path, or several do.
    """

    def describe(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = choose_spec(name, leaf.shape, mesh, rules)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(describe, tree)


def shardings_like(tree: PyTree, params: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the arrays of a tree, with the shardings of the parameters.

    If the path of an array ends in the path of a parameter of the same shape, the array has the
    sharding of the parameter, so Adam's moments are sharded like their parameters. Other arrays,
    such as a count of steps, are replicated on every device. Both trees may be descriptions.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    by_name = {name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    first = next(iter(by_name.values())).sharding
    replicated = NamedSharding(first.mesh, _WHOLE) if isinstance(first, NamedSharding) else first

    def describe(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        candidates = (by_name.get(name(path[start:])) for start in range(len(path)))
        parameter = next((p for p in candidates if p is not None and p.shape == leaf.shape), None)
        sharding = replicated if parameter is None else parameter.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(describe, tree)


def shardings_of(tree: PyTree) -> Shardings:
    """Shardings of a tree's leaves, hashable; none within a program, whose leaves have none."""
    leaves = jax.tree.leaves(tree)
    is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return () if is_traced else tuple(leaf.sharding for leaf in leaves)


def constrain(tree: PyTree[Array], shardings: Shardings) -> PyTree[Array]:
    """Constrains the arrays of a tree, within `jax.jit`, to the `shardings_of` a similar tree."""
    if all(sharding.num_devices == 1 for sharding in shardings):
        return tree
    shardings = jax.tree.unflatten(jax.tree.structure(tree), shardings)
    return jax.lax.with_sharding_constraint(tree, shardings)


def shard_params(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree[Array]:
    """Moves the arrays of a tree to their shardings by the rules, see `abstract_params`."""
    abstract = abstract_params(tree, mesh, rules)
    return jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), tree, abstract)


def place_like(tree: PyTree, params: PyTree) -> PyTree[Array]:
    """Moves the arrays of a tree that have a parameter's path and shape to where that lies."""
    places = {path: leaf for path, leaf in jax.tree.leaves_with_path(params)}

    def place(path: tuple[Any, ...], leaf: Any) -> Any:
        like = places.get(path)
        if like is None or like.shape != leaf.shape or like.sharding == leaf.sharding:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=like.sharding)
        return jax.device_put(leaf, like.sharding)

    return jax.tree_util.tree_map_with_path(place, tree)


def shard_array(array: np.ndarray, sharding: NamedSharding, dtype: Any = None) -> Array:
    """Moves an array from the host to the devices. No device ever holds more than its shard.

    The array is whole, and the same in every process. `dtype` None keeps the dtype.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(array[index], dtype)

    return jax.make_array_from_callback(array.shape, sharding, read)


def shard_over_devices(array: np.ndarray) -> Array:
    """Moves an array from the host to the mesh in effect, split over all devices if they divide it.

    Axes of the mesh that divide no dimension are not used.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return jax.numpy.asarray(array)
    return shard_array(array, NamedSharding(mesh, _fit([mesh.axis_names], array.shape, mesh)))


# Batches and activations, on the mesh in effect.


def count_data_rows() -> int:
    """Number of parts that the mesh in effect splits a batch into, a divisor of its rows."""
    return list_free_axes().get("data", 1)


def list_free_axes() -> dict[str, int]:
    """Sizes of the axes of the mesh in effect over which something can be split.

    Not over those of a `jax.shard_map` around the caller, where a device has its own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: size for axis, size in mesh.shape.items() if axis not in mesh.manual_axes}


def shard_batch(arrays: PyTree[np.ndarray]) -> PyTree[Array]:
    """Moves arrays, whole in every process, to the mesh in effect, split by their first axis.

    Raises:
        RagJaxError: the number of rows is not a multiple of the mesh's `data` axis.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return arrays
    # XLA drops an axis of size 1 from the shardings of results. Naming the axis here would make
    # equal shardings compare as different.
    sharding = NamedSharding(mesh, PartitionSpec("data") if mesh.shape["data"] > 1 else _WHOLE)

    def split(array: np.ndarray) -> Array:
        check_batches(mesh, {"rows of a batch": len(array)})
        return shard_array(np.asarray(array), sharding)

    return jax.tree.map(split, arrays)


def constrain_rows(x: Array, rows: int, *, free: bool = False) -> Array:
    """Keeps activations split by the rows of their batch, within `jax.jit`.

    Without the constraint the compiler may split the activations by features, like the weights.

    Args:
        x: activations `[rows, ...]` or `[rows * T, ...]`.
        rows: number of rows of the batch. If the mesh does not divide this number, as for a single
            prefix, `x` is returned without a constraint.
        free: whether the compiler may split the other axes too, as for logits.
    """
    parts = count_data_rows()
    if parts == 1 or rows % parts:
        return x
    other_axes = [PartitionSpec.UNCONSTRAINED if free else None] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", *other_axes))
