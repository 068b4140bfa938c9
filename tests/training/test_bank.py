"""A bank trained at once against each adapter trained alone."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_decoder, make_rows

from rag_jax import lora
from rag_jax.losses import token_logprobs
from rag_jax.runtime.clock import compile_seconds
from rag_jax.training.bank import init_bank_state, make_bank_step

MODEL, PARAMS = make_decoder(ffn_size=40)  # not the width of the heads, so that kernels can be told
SIZE, STEPS, ROWS, WIDTH = 3, 4, 2, 9
BANK = lora.init_bank(jax.random.key(0), PARAMS, targets=".*ffn/.*/kernel", rank=2, size=SIZE)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01, weight_decay=0.01))


def loss_fn(adapter, base, arrays):
    logits = MODEL.apply({"params": lora.apply(base, adapter, scale=16.0)}, arrays["tokens"])
    weights = arrays["weights"][:, 1:]
    nll = -token_logprobs(logits[:, :-1], arrays["tokens"][:, 1:]) * weights
    return nll.sum() / weights.sum(), {"loss_tokens": weights.sum()}


def make_arrays(step):
    rows = make_rows([WIDTH] * SIZE * ROWS, seed=step)
    lengths = np.random.default_rng(step).integers(2, WIDTH + 1, SIZE * ROWS)
    weights = np.arange(WIDTH) < lengths[:, None]
    shape = (SIZE, ROWS, WIDTH)
    return {
        "tokens": np.asarray(rows, np.int32).reshape(shape),
        "weights": weights.astype(np.float32).reshape(shape),
    }


def take(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def train(step, optimizer, change=lambda arrays: arrays):
    state, losses = init_bank_state(BANK, optimizer), []
    for i in range(STEPS):
        state, metrics = step(state, PARAMS, change(make_arrays(i)))
        losses.append(metrics["loss"])
    return state, np.stack(losses)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.01, weight_decay=0.01), CLIPPED])
def test_every_adapter_is_as_if_trained_alone(optimizer):
    state, losses = train(make_bank_step(loss_fn, optimizer), optimizer)
    assert losses.shape == (STEPS, SIZE)
    assert state.step.tolist() == [STEPS] * SIZE

    @jax.jit
    def step_alone(adapter, opt_state, arrays):
        loss, grads = jax.value_and_grad(lambda *args: loss_fn(*args)[0])(adapter, PARAMS, arrays)
        updates, opt_state = optimizer.update(grads, opt_state, adapter)
        return optax.apply_updates(adapter, updates), opt_state, loss

    for i in range(SIZE):
        adapter = take(BANK, i)
        opt_state = optimizer.init(adapter)
        for step in range(STEPS):
            adapter, opt_state, loss = step_alone(adapter, opt_state, take(make_arrays(step), i))
            np.testing.assert_allclose(losses[step, i], loss, rtol=1e-5)
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4),
            take(state.params, i),
            adapter,
        )
    jax.tree.map(np.testing.assert_array_equal, BANK, jax.tree.map(jnp.array, BANK))  # not donated


def test_what_is_not_finite_stays_with_its_adapter():
    optimizer = optax.adamw(0.01)
    step = make_bank_step(loss_fn, optimizer)

    def spoil(arrays):
        arrays["weights"][1] = np.nan
        return arrays

    good, good_losses = train(step, optimizer)
    state, losses = train(step, optimizer, spoil)
    assert np.isnan(losses[:, 1]).all()
    others = [0, 2]
    np.testing.assert_array_equal(losses[:, others], good_losses[:, others])
    for i in others:
        jax.tree.map(np.testing.assert_array_equal, take(state, i), take(good, i))


def test_one_program_with_large_products():
    """The base's products are not batched by adapter, and nothing is compiled a second time."""
    optimizer = optax.adamw(0.01)
    step = make_bank_step(loss_fn, optimizer)
    state, _ = step(init_bank_state(BANK, optimizer), PARAMS, make_arrays(0))
    before = compile_seconds()
    step(state, PARAMS, make_arrays(1))
    assert compile_seconds() == before

    def run(adapter, arrays):
        return jax.vmap(jax.grad(lambda *args: loss_fn(*args)[0]), (0, None, 0))(
            adapter, PARAMS, arrays
        )

    text = jax.jit(run).lower(BANK, make_arrays(0)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    width, size = MODEL.config.hidden_size, MODEL.config.ffn_size
    of_base = [
        line
        for line in products
        if re.search(rf"tensor<({width}x{size}|{size}x{width})xf32>\)? ->", line)
    ]
    # Three kernels a layer, forward and backward; below the first layer's FFN nothing is trained.
    assert len(of_base) == 3 * 2 * MODEL.config.num_layers - 2
    assert not any("batching_dims" in line for line in of_base)
    # No product gives a gradient of a kernel: [N, D, F] or [D, F].
    assert not re.search(
        rf"-> tensor<({SIZE}x)?({width}x{size}|{size}x{width})xf32>", "".join(products)
    )


def test_steps_within_a_program():
    optimizer, arrays = optax.adamw(0.01), jax.tree.map(jnp.asarray, make_arrays(0))
    step = make_bank_step(loss_fn, optimizer)

    @jax.jit
    def run(state):
        return jax.lax.scan(lambda s, _: step(s, PARAMS, arrays), state, None, length=2)

    found, metrics = run(init_bank_state(BANK, optimizer))
    state = init_bank_state(BANK, optimizer)
    losses = []
    for _ in range(2):
        state, own = step(state, PARAMS, arrays)
        losses.append(own["loss"])
    np.testing.assert_allclose(metrics["loss"], np.stack(losses), atol=1e-5)
    close = partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, found.params, state.params)
