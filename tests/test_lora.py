"""Adapters over a real decoder: unfused, folded, chosen by name, and many at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_decoder, make_rows

from rag_jax import lora

MODEL, PARAMS = make_decoder()
TOKENS = jnp.asarray(make_rows([7, 7]))
FORWARD = jax.jit(lambda params: MODEL.apply({"params": params}, TOKENS))
ALL = ".*/kernel"


def randomise(adapter, seed=0):
    """An adapter whose `b` is no longer zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), adapter)


def list_paths(adapter):
    leaves = jax.tree_util.tree_leaves_with_path(adapter)
    return {"/".join(key.key for key in path[:-1]) for path, _ in leaves}


def test_init_changes_nothing():
    adapter = lora.init(jax.random.key(0), PARAMS, targets=ALL, rank=2)
    np.testing.assert_array_equal(FORWARD(lora.apply(PARAMS, adapter, scale=2.0)), FORWARD(PARAMS))
    folded = lora.fold(PARAMS, adapter, scale=2.0)
    jax.tree.map(np.testing.assert_array_equal, folded, PARAMS)


def test_init_draws_within_the_bound_and_each_matrix_its_own():
    wide = {"x": {"kernel": jnp.zeros((400, 50))}, "y": {"kernel": jnp.zeros((400, 60))}}
    adapter = lora.init(jax.random.key(0), wide, targets=ALL, rank=8)
    first, second = (adapter[name]["kernel"] for name in "xy")
    assert first["a"].shape == second["a"].shape == (400, 8)
    assert first["b"].shape == (8, 50) and not first["b"].any()
    bound = 400**-0.5
    assert 0.99 * bound < np.abs(first["a"]).max() <= bound
    np.testing.assert_allclose(first["a"].std(), bound / np.sqrt(3), rtol=0.05)  # uniform
    assert np.abs(np.corrcoef(first["a"].ravel(), second["a"].ravel())[0, 1]) < 0.1
    other = lora.init(jax.random.key(1), wide, targets=ALL, rank=8)
    assert (other["x"]["kernel"]["a"] != first["a"]).mean() > 0.99


@pytest.mark.parametrize("targets", [ALL, ".*/(query|up)/kernel"])
def test_unfused_equals_folded(targets):
    adapter = randomise(lora.init(jax.random.key(0), PARAMS, targets=targets, rank=2))
    unfused = FORWARD(lora.apply(PARAMS, adapter, scale=0.5))
    folded = FORWARD(lora.fold(PARAMS, adapter, scale=0.5))
    np.testing.assert_allclose(unfused, folded, atol=1e-5, rtol=1e-5)
    assert np.abs(unfused - FORWARD(PARAMS)).max() > 0.1


def test_fold_is_the_matrix_sum():
    adapter = randomise(lora.init(jax.random.key(0), PARAMS, targets=".*/up/kernel", rank=2))
    folded = lora.fold(PARAMS, adapter, scale=0.25)
    for i in range(2):
        kernel = PARAMS[f"layers_{i}"]["ffn"]["up"]["kernel"]
        patch = adapter[f"layers_{i}"]["ffn"]["up"]["kernel"]
        expected = kernel + 0.25 * np.asarray(patch["a"]) @ np.asarray(patch["b"])
        np.testing.assert_allclose(
            folded[f"layers_{i}"]["ffn"]["up"]["kernel"], expected, atol=1e-6
        )
    assert folded["layers_0"]["ffn"]["gate"] is PARAMS["layers_0"]["ffn"]["gate"]


def test_the_base_is_left_alone_and_shared():
    before = jax.tree.map(jnp.copy, PARAMS)
    adapter = randomise(lora.init(jax.random.key(0), PARAMS, targets=ALL, rank=2))
    applied = lora.apply(PARAMS, adapter, scale=1.0)
    lora.fold(PARAMS, adapter, scale=1.0)
    assert jax.tree.structure(PARAMS) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, PARAMS, before)
    kernel = applied["layers_1"]["ffn"]["up"]["kernel"]
    assert kernel is PARAMS["layers_1"]["ffn"]["up"]["kernel"]


def test_targets_are_a_regular_expression_over_whole_paths():
    def paths(targets):
        return list_paths(lora.init(jax.random.key(0), PARAMS, targets=targets, rank=2))

    ffn = {f"layers_{i}/ffn/{name}/kernel" for i in range(2) for name in ("gate", "up", "down")}
    assert paths(r".*/ffn/.*") == ffn
    assert paths(r"layers_1/attention/(query|value)/kernel") == {
        "layers_1/attention/query/kernel",
        "layers_1/attention/value/kernel",
    }
    assert paths("head/kernel") == {"head/kernel"}
    assert len(paths(ALL)) == 2 * 7 + 1  # and no scale: those are vectors


@pytest.mark.parametrize("targets", ["", "kernel", "ffn", ".*/scale", "layers_2/.*"])
def test_targets_that_match_nothing(targets):
    message = "no matrix of the parameters matches the targets"
    with pytest.raises(ValueError, match=message) as caught:
        lora.init(jax.random.key(0), PARAMS, targets=targets, rank=2)
    assert repr(targets) in str(caught.value)


def test_what_no_layer_would_read_is_refused_unfused():
    adapter = randomise(lora.init(jax.random.key(0), PARAMS, targets="embed/.*", rank=2))
    with pytest.raises(ValueError, match="no layer would find an adapter beside 'embedding'"):
        lora.apply(PARAMS, adapter, scale=1.0)
    assert np.abs(FORWARD(lora.fold(PARAMS, adapter, scale=1.0)) - FORWARD(PARAMS)).max() > 0.1


def test_a_bank_over_one_base_trains_in_one_trace():
    size, steps, traces = 3, 4, []
    model, params = make_decoder(num_layers=1)
    optimizer = optax.adam(0.05)
    data = jnp.asarray(make_rows([6] * size, seed=7))[:, None]

    def loss(adapter, base, tokens):
        logits = model.apply({"params": lora.apply(base, adapter, scale=2.0)}, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(adapter, state, base, tokens):
        traces.append(1)
        value, gradient = jax.value_and_grad(loss)(adapter, base, tokens)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(adapter, updates), state, value

    def train(step, adapter, state, tokens):
        values = []
        for _ in range(steps):
            adapter, state, value = step(adapter, state, params, tokens)
            values.append(np.asarray(value))
        return adapter, np.stack(values)

    make = partial(lora.init, params=params, targets=".*/ffn/.*", rank=2)
    keys = jax.random.split(jax.random.key(0), size)
    bank = jax.vmap(lambda key: make(key))(keys)
    assert bank["layers_0"]["ffn"]["up"]["kernel"]["a"].shape == (size, 16, 2)
    many = jax.jit(jax.vmap(step, in_axes=(0, 0, None, 0)))
    trained, values = train(many, bank, jax.vmap(optimizer.init)(bank), data)
    assert len(traces) == 1
    assert values.shape == (steps, size) and (values[-1] < values[0] - 0.1).all()

    one = jax.jit(step)
    for i in range(size):
        adapter = make(keys[i])
        alone, own = train(one, adapter, optimizer.init(adapter), data[i])
        np.testing.assert_allclose(values[:, i], own, atol=1e-4)
        picked = jax.tree.map(lambda leaf, i=i: leaf[i], trained)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), picked, alone)
    assert len(traces) == 2
