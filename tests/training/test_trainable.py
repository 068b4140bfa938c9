"""All weights or an adapter: the start, the merge, and the way through the disk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder

from rag_jax.config import MeshConfig, TuningConfig
from rag_jax.runtime.checkpoint import save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES, make_mesh
from rag_jax.training.trainable import init_trained, make_trainable, merge_trained, train_all

MODEL, PARAMS = make_decoder(num_layers=1)
HALF = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
FULL, LORA = TuningConfig(mode="full"), TuningConfig(mode="lora", rank=2, alpha=6.0)


def make(tuning, params=PARAMS, dtype=jnp.float32):
    mesh = make_mesh(MeshConfig())
    return make_trainable(tuning, params, rules=DECODER_RULES, mesh=mesh, seed=5, dtype=dtype)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def fill(adapter):
    """An adapter that changes something: its second factors start at zero."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.25), adapter)


@jax.jit
def read(params):
    """The logits of a row of tokens."""
    return MODEL.apply({"params": params}, jnp.asarray([[3, 1, 4, 1, 5]]))


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("params", [PARAMS, HALF], ids=["float32", "bfloat16"])
def test_the_start_is_float32_and_changes_nothing(tuning, params):
    trainable = make(tuning, params, dtype=jax.tree.leaves(params)[0].dtype)
    start = trainable.start()
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(read(trainable.merge(start, params)), read(params))
    assert trainable.frozen is (None if tuning is FULL else params)
    described = trainable.abstract()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), described) == jax.tree.map(
        lambda x: (x.shape, x.dtype), start
    )


def test_all_weights_are_trained_in_float32_alone():
    options = {"rules": DECODER_RULES, "mesh": make_mesh(MeshConfig())}
    assert_same(train_all(PARAMS, **options).start(), PARAMS)
    with pytest.raises(RagJaxError, match="the weights are bfloat16, .* in float32"):
        train_all(HALF, **options)


def test_an_adapter_is_added_at_its_scale():
    adapter = fill(init_trained(LORA, PARAMS, seed=0))
    merged = merge_trained(LORA, adapter, PARAMS, dtype=jnp.float32)

    def add(kernel, factors):
        return kernel + 3.0 * factors["a"] @ factors["b"]

    layer, factors = dict(PARAMS["layers_0"]), adapter["layers_0"]
    for part in ("attention", "ffn"):
        kernels = {
            name: {"kernel": add(layer[part][name]["kernel"], factors[part][name]["kernel"])}
            for name in layer[part]
        }
        layer |= {part: kernels}
    wanted = read(PARAMS | {"layers_0": layer})
    np.testing.assert_allclose(read(merged), wanted, rtol=1e-4, atol=1e-4)
    assert np.abs(wanted - read(PARAMS)).max() > 0.1


def test_targets_choose_the_kernels():
    tuning = TuningConfig(mode="lora", rank=2, targets=r"ffn/up")
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree.leaves_with_path(init_trained(tuning, PARAMS, seed=0))
    ]
    assert paths and all("['ffn']['up']['kernel']" in path for path in paths)
    tuning = TuningConfig(mode="lora", targets="attention/nothing")
    with pytest.raises(RagJaxError, match=re.escape("config.tuning.targets='attention/nothing': ")):
        init_trained(tuning, PARAMS, seed=0)


def test_the_seed_decides_the_start():
    one, again, other = (init_trained(LORA, PARAMS, seed=seed) for seed in (1, 1, 2))
    assert_same(one, again)
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_through_the_disk(tmp_path, tuning):
    trainable = make(tuning, HALF, dtype=jnp.bfloat16)
    trained = fill(trainable.start())
    save_tree(tmp_path / "params", trained)
    assert_same(trainable.load(tmp_path / "params"), trained)
    merged = trainable.load_merged(tmp_path / "params")
    assert_same(merged, jax.jit(trainable.merge)(trained, HALF))
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
    with pytest.raises(RagJaxError, match="missing, cut short or altered"):
        trainable.load(tmp_path / "absent")
