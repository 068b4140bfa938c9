"""Collecting of parameters that a program reads again and again."""

from typing import Any

import jax
from jaxtyping import Array, PyTree

from rag_jax.runtime.sharding import Rules, choose_spec, count_data_rows, keep_over_data


def collect_over_data(params: PyTree[Array], rules: Rules) -> PyTree[Array]:
    """Parameters that are split over `model` alone, within `jax.jit`.

    What a program reads again and again, as in a loop over chunks of a batch, is then collected
    once. On one data row nothing changes.

    Args:
        rules: sharding rules of the parameters.
    """
    if count_data_rows() == 1:
        return params
    mesh, kept = jax.sharding.get_abstract_mesh(), keep_over_data(rules)

    def collect(path: tuple[Any, ...], leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.lax.with_sharding_constraint(leaf, choose_spec(name, leaf.shape, mesh, kept))

    return jax.tree_util.tree_map_with_path(collect, params)
