"""Descriptions of arrays: the inputs of a step, caches, states of loops."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Bool, Float, Int

from rag_jax.config import MeshConfig
from rag_jax.decoding.cache import grow, init_cache
from rag_jax.models.io.sizes import find_sizes
from rag_jax.planning.abstract import describe_cache, describe_inputs, describe_model
from rag_jax.runtime.sharding import make_mesh


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@partial(jax.jit, static_argnames="k")
def step(params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], x: Float[Array, "B"], *, k=1):
    return params + tokens.sum() + mask.sum() + x.sum() * k


def test_a_step_describes_the_inputs_that_it_lacks(mesh):
    found = describe_inputs(step, mesh, {"B": 4, "T": 7}, 1.0, x=jnp.zeros(4))
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()}
    assert shapes == {"tokens": ((4, 7), jnp.int32), "mask": ((4, 7), jnp.bool_)}


def test_an_axis_without_a_size_is_named(mesh):
    with pytest.raises(KeyError, match="T"):
        describe_inputs(step, mesh, {"B": 4}, 1.0)


def test_a_described_cache_is_the_real_one(mesh):
    lm = describe_model(find_sizes("smollm2-135m-instruct"), mesh, dtype=jnp.bfloat16)
    prefix = grow(init_cache(lm.model, 1, dtype=jnp.bfloat16), 3)
    for shared in (None, prefix):
        real = grow(init_cache(lm.model, 2, dtype=jnp.bfloat16, prefix=shared), 5)
        found = describe_cache(lm, mesh, 2, 5, shared)
        assert jax.tree.structure(found) == jax.tree.structure(real)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(real), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
