"""Log-probabilities in chunks of positions: values and gradients against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, softmax

from rag_jax import losses
from rag_jax.losses import hidden_logprobs, map_positions, token_logprobs

ROWS, COUNT, V, D = 2, 7, 31, 16


def make(tied, dtype=jnp.float32):
    model, params = make_decoder(num_layers=1, tie_embeddings=tied)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(ROWS, COUNT, D)), dtype)
    targets = jnp.asarray(rng.integers(0, V, (ROWS, COUNT)))
    weights = jnp.asarray(rng.normal(size=(ROWS, COUNT)), jnp.float32)

    def loss(params, hidden):
        to_logits = partial(model.apply, {"params": params}, method="logits")
        found = hidden_logprobs(to_logits, hidden, targets, vocab_size=V)
        return (weights * found).sum(), found

    return params, hidden, targets, weights, jax.value_and_grad(loss, (0, 1), has_aux=True)


@pytest.mark.parametrize("positions", [1, 3, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_of_positions(tied, positions, monkeypatch):
    monkeypatch.setattr(losses, "_LOGIT_BYTES", 4 * V * ROWS * positions)
    params, hidden, targets, weights, compute = make(tied)
    (_, found), (of_params, of_hidden) = jax.jit(compute)(params, hidden)

    kernel = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
    wide, states = np.asarray(kernel, np.float64), np.asarray(hidden, np.float64)
    table = softmax(states @ wide)
    chosen = np.take_along_axis(table, np.asarray(targets)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, np.log(chosen), atol=1e-5)
    errors = (np.eye(V)[np.asarray(targets)] - table) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(of_hidden, errors @ wide.T, atol=1e-5)
    gradient = np.einsum("bpd,bpv->dv", states, errors)
    ours = of_params["embed"]["embedding"].T if tied else of_params["head"]["kernel"]
    np.testing.assert_allclose(ours, gradient, atol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_logits_of_all_positions_are_never_there(kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(losses, "_LOGIT_BYTES", 4 * V * ROWS * 3)
    params, hidden, *_, compute = make(False)
    text = str(jax.make_jaxpr(compute)(params, hidden))
    whole = f"[{ROWS * COUNT},{V}]"
    assert (whole in text) == kept
    assert (f"[{ROWS * 3},{V}]" in text) == (not kept)


def test_few_positions_are_computed_at_once():
    """The program is the one without chunks, to the bit."""
    params, hidden, targets, *_ = make(True)
    kernel = params["embed"]["embedding"].T

    def plain(hidden, targets):
        return token_logprobs(hidden @ kernel, targets)

    def chunked(hidden, targets):
        return hidden_logprobs(lambda x: x @ kernel, hidden, targets, vocab_size=V)

    one, other = (jax.make_jaxpr(f)(hidden, targets) for f in (plain, chunked))
    assert str(one) == str(other)


def test_several_results_and_axes(monkeypatch):
    """Positions are the last axis of each result; here the sum over an axis of rows is another."""
    monkeypatch.setattr(losses, "_LOGIT_BYTES", 4 * 5 * 6 * 2)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 9, 4)))
    targets = jnp.arange(54).reshape(2, 3, 9)

    def function(hidden, targets):
        assert targets.shape == (2, 3, 2)
        return {"rows": hidden.sum(-1), "sums": (hidden[..., 0] + targets).sum(1)}

    found = map_positions(function, hidden, targets, vocab_size=5)
    np.testing.assert_allclose(found["rows"], hidden.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(found["sums"], (hidden[..., 0] + targets).sum(1), rtol=1e-6)


def test_chunks_are_equal_and_as_few_as_fit(monkeypatch):
    assert losses._choose_chunk(64, 128, 32_000) == 32  # 64 * 32 * 32,000 * 4 are 250 MiB
    assert losses._choose_chunk(2, 1024, 152_000) == 205  # five chunks of at most 220
    assert losses._choose_chunk(1, 40, 152_000) == 40
    assert losses._choose_chunk(10**9, 3, 10) == 1
    assert losses._choose_chunk(1, 0, 10) == losses._choose_chunk(0, 0, 10) == 0
    monkeypatch.setattr(losses, "count_data_rows", lambda: 64)
    assert losses._choose_chunk(64, 128, 32_000) == 128
