"""Training passes over stacked layers against a list of layers, and what they compile."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows

from rag_jax.config import MeshConfig, TuningConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES, make_mesh
from rag_jax.training.rows import Row, pack_rows, target_logprobs
from rag_jax.training.trainable import make_trainable, set_passes

MODEL, PARAMS = make_decoder(num_layers=3)
ROWS = [
    Row(str(i), tokens, {"answer": (len(tokens) - 3, len(tokens))})
    for i, tokens in enumerate(make_rows([6, 9, 13, 7]))
]
BATCH = pack_rows(
    [ROWS[:2], ROWS[2:]],
    terms=("answer",),
    width=24,
    targets=8,
    batch=2,
    scale=0.5,
    reduction="mean",
)


def make(tuning):
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    options = {"rules": DECODER_RULES, "mesh": mesh, "seed": 0, "dtype": jnp.float32}
    trainable, model = make_trainable(tuning, PARAMS, **options), set_passes(MODEL, tuning)

    def loss(trained, batch):
        logprobs = target_logprobs(model, trainable.merge(trained, PARAMS), batch)
        return -(logprobs * batch["answer"]).sum()

    start = trainable.start()
    if tuning.mode == "lora":  # b starts at zero, and a would have no gradient
        start = jax.tree.map(lambda leaf: leaf + 0.1, start)
    return start, jax.value_and_grad(loss)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_gradients_are_those_of_a_list_of_layers(mode, remat):
    """For the same trained tree, a layer a name."""
    start, compute = make(TuningConfig(mode=mode, rank=2, remat=remat))
    same, scanned = make(TuningConfig(mode=mode, rank=2, remat=remat, scan_layers=True))
    jax.tree.map(np.testing.assert_array_equal, same, start)
    wanted, found = jax.jit(compute)(start, BATCH), jax.jit(scanned)(start, BATCH)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6 * largest)
    jax.tree.map(close, found, wanted)


def test_a_bank_of_adapters_scans_its_layers():
    """Every adapter its own weights, over the same frozen ones."""
    tuning = TuningConfig(rank=2, targets=r"ffn/(gate|up|down)", remat="full")
    start, compute = make(tuning)
    scanned = make(replace(tuning, scan_layers=True))[1]
    bank = jax.tree.map(lambda leaf: jnp.stack([leaf / 2, leaf / 4]), start)
    wanted, found = (
        jax.jit(jax.vmap(gradients, in_axes=(0, None)))(bank, BATCH)
        for gradients in (compute, scanned)
    )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * largest)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_layers_of_several_kinds(mode, monkeypatch):
    """Two slide, by blocks as the rows are longer than the window, and one does not rotate."""
    kinds = {"window": 5, "sliding_layers": (0, 2), "unrotated_layers": (1,)}
    monkeypatch.setitem(globals(), "MODEL", make_decoder(num_layers=3, **kinds)[0])
    test_gradients_are_those_of_a_list_of_layers(mode, "full")


def count_calls(remat, scan_layers, num_layers):
    model, params = make_decoder(num_layers=num_layers)
    model = set_passes(model, TuningConfig(remat=remat, scan_layers=scan_layers))

    def loss(params, batch):
        return target_logprobs(model, params, batch).sum()

    return jax.jit(jax.grad(loss)).lower(params, BATCH).as_text().count("call @")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_of_many_layers_is_that_of_few(remat):
    assert count_calls(remat, True, 6) == count_calls(remat, True, 2)
    # Lowering shares a list's layers, and XLA then compiles every call of one.
    assert count_calls(remat, False, 6) >= count_calls(remat, False, 2) + 8


def test_reading_into_a_cache_and_one_layers_output_go_through_the_list():
    """They have a result for each layer."""
    model, tokens = MODEL.clone(scan_layers=True), jnp.asarray(make_rows([5]))
    read = partial(MODEL.apply, {"params": PARAMS}, tokens, method="hidden")
    wanted = read(return_layer=1)
    scanned = partial(model.apply, {"params": PARAMS}, tokens, method="hidden")
    jax.tree.map(np.testing.assert_array_equal, scanned(return_layer=1), wanted)
    np.testing.assert_allclose(scanned().hidden, wanted.hidden, rtol=1e-5, atol=1e-5)
    fresh = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.structure(fresh) == jax.tree.structure(PARAMS)


def test_adapters_on_some_layers_cannot_be_stacked():
    targets = "layers_1/attention/query"
    start, compute = make(TuningConfig(rank=2, targets=targets, scan_layers=True))
    with pytest.raises(RagJaxError, match=r"config.tuning.scan_layers=True: the layers have diff"):
        jax.eval_shape(compute, start, BATCH)
