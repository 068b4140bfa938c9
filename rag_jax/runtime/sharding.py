"""How arrays lie over the devices of a mesh: `data` splits batches, `model` splits matrices.

Weights are split over both axes. What an axis does to a parameter is told by ordered rules, pairs
of a regular expression and a `PartitionSpec`, of which exactly one must match the parameter's path.
Adapters and optimiser moments follow their parameter, whose path is part of theirs.

Programs run on the mesh in effect (`with jax.set_mesh(mesh)`); with none, or one of a single
device, every function here that moves or constrains arrays leaves them as they are.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from rag_jax.config import MeshConfig
from rag_jax.runtime.errors import RagJaxError

Rules = Sequence[tuple[str, PartitionSpec]]
Shardings = tuple[jax.sharding.Sharding, ...]

_SPLIT_IN, _SPLIT_OUT = PartitionSpec("model", "data"), PartitionSpec("data", "model")
_WHOLE = PartitionSpec()

# A product that splits its output over `model` is followed by one that splits its input so: the
# activations between the two never leave their device (Shoeybi et al. 2019, section 3).
DECODER_RULES: Rules = (
    (r"embed/embedding", _SPLIT_IN),
    (r"layers_\d+/attention/(query|key|value)/kernel", _SPLIT_OUT),
    (r"layers_\d+/attention/output/kernel", _SPLIT_IN),
    (r"layers_\d+/ffn/(gate|up)/kernel", _SPLIT_OUT),
    (r"layers_\d+/ffn/down/kernel", _SPLIT_IN),
    (r"layers_\d+/attention/(query|key|value)/bias", _WHOLE),
    (r"(layers_\d+/(attention|ffn)_norm|final_norm)/(scale|bias)", _WHOLE),
    (r"head/kernel", _SPLIT_OUT),
)
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
    """The mesh over all devices, or over those given.

    Raises:
        RagJaxError: the sizes don't multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "model": config.model}
    given = math.prod(size for size in sizes.values() if size > 0)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = len(devices) // given
    if math.prod(sizes.values()) != len(devices):
        raise RagJaxError(
            f"config.mesh.data={config.data} by config.mesh.model={config.model} does not divide "
            f"{len(devices)} device(s): the two must multiply to their number (-1 for the rest)"
        )
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def check_batches(mesh: Mesh, sizes: dict[str, int]) -> None:
    """Raises a RagJaxError for the first setting whose batches the mesh can't split by rows."""
    rows = dict(mesh.shape).get("data", 1)
    for name, size in sizes.items():
        if size % rows:
            raise RagJaxError(
                f"{name}={size} does not divide the mesh: make it a multiple of its {rows} data "
                "rows (config.mesh.data)"
            )


# Where parameters lie.


def choose_spec(path: str, shape: Sequence[int], mesh: Mesh, rules: Rules) -> PartitionSpec:
    """The spec of one parameter, or of an array that follows one.

    An adapter's `a` is split as its kernel's input and `b` as its output. An axis that doesn't
    divide the dimension it is meant for goes to the largest one that it does divide, if any.

    Args:
        path: names joined by `/`; what stands before the parameter's own path is ignored.

    Raises:
        RagJaxError: no rule matches, or several do.
    """
    if not len(shape):
        return _WHOLE
    # Both `kernel/a`, in an adapter's own tree, and `lora_a`, where it lies beside its kernel.
    factor = re.fullmatch(r"(.*/)(?:kernel/|lora_)([ab])", path)
    kernel = f"{factor[1]}kernel" if factor else path
    matching = [spec for regex, spec in rules if re.search(rf"(?:^|/)(?:{regex})$", kernel)]
    if len(matching) != 1:
        raise RagJaxError(f"parameter {path}: {len(matching)} sharding rules match it, not one")
    spec = (*matching[0], *[None] * len(shape))[: len(shape)]
    if factor:
        spec = (spec[0], None) if factor[2] == "a" else (None, spec[1])
    return _fit(spec, shape, mesh)


def _fit(spec: Iterable[Any], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """The spec with every axis on a dimension that it divides; axes of size one left out."""
    sizes, placed = dict(mesh.shape), [[] for _ in shape]

    def put(axis: str, dimensions: Iterable[int]) -> bool:
        for i in dimensions:
            if shape[i] % math.prod(sizes[a] for a in (*placed[i], axis)) == 0:
                placed[i].append(axis)
                return True
        return False

    by_size = sorted(range(len(shape)), key=lambda i: -shape[i])
    wanted = [
        (axis, i)
        for i, axes in enumerate(spec)
        for axis in ((axes,) if isinstance(axes, str) else axes or ())
        if sizes.get(axis, 1) > 1
    ]
    for axis in [axis for axis, i in wanted if not put(axis, [i])]:
        put(axis, by_size)
    # As JAX itself writes a spec: two ways of writing one would compile everything twice.
    entries = [None if not axes else axes[0] if len(axes) == 1 else tuple(axes) for axes in placed]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def abstract_params(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree[jax.ShapeDtypeStruct]:
    """Describes a tree's arrays with the shardings that the rules give them.

    Args:
        tree: nested dicts of arrays, or what `jax.eval_shape` made of a function.

    Raises:
        RagJaxError: not exactly one rule matches some parameter.
    """

    def describe(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = choose_spec(name, leaf.shape, mesh, rules)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(describe, tree)


def shardings_like(tree: PyTree, params: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Describes a tree's arrays with the shardings of the parameters whose paths theirs end in.

    So Adam's moments lie where their parameters do. What belongs to no parameter, such as a count
    of steps, lies whole on every device.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    known = {name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    some = next(iter(known.values())).sharding
    whole = NamedSharding(some.mesh, _WHOLE) if isinstance(some, NamedSharding) else some

    def describe(path, leaf):
        ends = (known.get(name(path[start:])) for start in range(len(path)))
        leader = next((end for end in ends if end is not None and end.shape == leaf.shape), None)
        sharding = whole if leader is None else leader.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(describe, tree)


def shardings_of(tree: PyTree) -> Shardings:
    """Where a tree's arrays, or those described, lie: hashable, so that `jax.jit` can be told."""
    return tuple(leaf.sharding for leaf in jax.tree.leaves(tree))


def constrain(tree: PyTree[Array], places: Shardings) -> PyTree[Array]:
    """Within `jax.jit`: has arrays lie where `shardings_of` found those of a tree alike."""
    if all(place.num_devices == 1 for place in places):
        return tree
    return jax.lax.with_sharding_constraint(
        tree, jax.tree.unflatten(jax.tree.structure(tree), places)
    )


def shard_params(tree: PyTree, mesh: Mesh, rules: Rules) -> PyTree[Array]:
    """Moves a tree's arrays to where the rules want them."""
    described = abstract_params(tree, mesh, rules)
    return jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), tree, described)


def shard_array(array: np.ndarray, sharding: NamedSharding, dtype: Any = None) -> Array:
    """An array of the host in its shards; no device ever holds more than its own.

    Every process has the whole of it and hands over the part that its devices hold.
    """

    def read(index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(array[index], dtype)

    return jax.make_array_from_callback(array.shape, sharding, read)


def shard_over_devices(array: np.ndarray) -> Array:
    """Splits an array of the host over all devices of the mesh in effect, as far as they divide."""
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return jax.numpy.asarray(array)
    return shard_array(array, NamedSharding(mesh, _fit([mesh.axis_names], array.shape, mesh)))


def count_replicated(tree: PyTree) -> int:
    """Bytes of the arrays, or descriptions of arrays, that lie whole on every device."""
    whole = (leaf for leaf in jax.tree.leaves(tree) if leaf.sharding.is_fully_replicated)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in whole)


def count_bytes_per_device(tree: PyTree) -> int:
    """Bytes that the arrays, or descriptions of arrays, take on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


# Batches, on the mesh in effect.


def count_data_rows() -> int:
    """Into how many parts the mesh in effect splits a batch; its rows must be a multiple."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("data", 1)


def shard_batch(arrays: PyTree[np.ndarray]) -> PyTree[Array]:
    """Splits arrays of the host by rows over the mesh in effect.

    Every process passes the same arrays and feeds its own devices' rows.

    Raises:
        RagJaxError: the rows don't divide.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return arrays
    # An axis of one is not named: XLA leaves it out of results, whose places would then be others.
    sharding = NamedSharding(mesh, PartitionSpec("data") if mesh.shape["data"] > 1 else _WHOLE)

    def split(array: np.ndarray) -> Array:
        check_batches(mesh, {"rows of a batch": len(array)})
        return shard_array(np.asarray(array), sharding)

    return jax.tree.map(split, arrays)


def constrain_rows(x: Array, rows: int, *, free: bool = False) -> Array:
    """Within `jax.jit`: keeps activations split by the rows of their batch.

    Left alone, the compiler may split them by feature instead, as the weights are split.

    Args:
        x: its first axis has the rows as its major part: `[rows, ...]` or `[rows * T, ...]`.
        rows: where the mesh doesn't divide them, as a single prefix, nothing is asked for.
        free: whether the other axes may be split too, as those of logits.
    """
    parts = count_data_rows()
    if parts == 1 or rows % parts:
        return x
    rest = [PartitionSpec.UNCONSTRAINED if free else None] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", *rest))
