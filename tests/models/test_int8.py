"""Layers in int8: steps against NumPy, the model against one with the rounded weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny import make_decoder, make_rows

from rag_jax import lora
from rag_jax.config import MeshConfig, TuningConfig
from rag_jax.models.int8 import is_quantized, quantize, quantize_layers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES, choose_spec, make_mesh
from rag_jax.training.trainable import init_trained, make_trainable, set_passes

MODEL, PARAMS = make_decoder()
QUANTIZED = quantize_layers(PARAMS)
TOKENS = jnp.asarray(make_rows([9, 9]))


def restore(params):
    """The float32 weights that steps and scales stand for."""
    if not isinstance(params, dict):
        return params
    tree = {name: restore(node) for name, node in params.items()}
    if "kernel_scale" in tree:
        tree["kernel"] = tree["kernel"] * tree.pop("kernel_scale")[None]
    return tree


@settings(max_examples=30)
@given(
    arrays(np.float32, (4, 3), elements=st.integers(-8000, 8000).map(lambda n: n / 8)),
    st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_no_weight_is_off_by_more_than_half_a_step(kernel, dtype):
    kernel = jnp.asarray(kernel, dtype)
    steps, scale = quantize(kernel)
    assert steps.dtype == jnp.int8 and scale.dtype == kernel.dtype
    assert int(steps.min()) >= -127
    wide, size, steps = (np.asarray(x, np.float64) for x in (kernel, scale, steps))
    # A scale of a short type may be rounded down, by which the largest weight is cut.
    cut = 127 * size * float(jnp.finfo(dtype).eps)
    assert (np.abs(steps * size - wide) <= 0.5 * size * (1 + 1e-5) + cut + 1e-30).all()


def test_the_layers_kernels_are_in_int8_and_nothing_else():
    assert is_quantized(QUANTIZED) and not is_quantized(PARAMS)
    query = QUANTIZED["layers_1"]["attention"]["query"]
    assert query["kernel"].dtype == jnp.int8 and query["kernel_scale"].shape == (24,)
    small = [leaf.nbytes for leaf in jax.tree.leaves(QUANTIZED["layers_0"]["ffn"])]
    assert sum(small) < 0.4 * sum(
        leaf.nbytes for leaf in jax.tree.leaves(PARAMS["layers_0"]["ffn"])
    )
    for name in ("embed", "final_norm", "head"):
        assert QUANTIZED[name] is PARAMS[name]


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_model_in_int8_is_one_with_the_weights_of_the_steps(scan_layers):
    """Logits and an adapter's gradients; and they are near those of the weights themselves."""
    tuning = TuningConfig(rank=2, scan_layers=scan_layers)
    model, mesh = set_passes(MODEL, tuning), make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    options = {"rules": DECODER_RULES, "mesh": mesh, "seed": 0, "dtype": jnp.float32}
    trainable = make_trainable(tuning, QUANTIZED, **options)
    plain = make_trainable(tuning, PARAMS, **options).start()
    jax.tree.map(np.testing.assert_array_equal, trainable.start(), plain)
    start = jax.tree.map(lambda leaf: leaf + 0.02, plain)

    def loss(adapter, base):
        logits = model.apply({"params": trainable.merge(adapter, base)}, TOKENS)
        return (jax.nn.log_softmax(logits) ** 2).mean(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    found, wanted, exact = (run(start, base) for base in (QUANTIZED, restore(QUANTIZED), PARAMS))
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, found, wanted)
    (_, ours), (_, theirs) = found[0], exact[0]
    assert 0 < np.std(ours - theirs) < 0.05 * np.std(theirs)


def test_weights_in_int8_are_not_trained_or_folded_into():
    with pytest.raises(RagJaxError, match="config.tuning.mode='full': the weights are in int8"):
        init_trained(TuningConfig(mode="full"), QUANTIZED, seed=0)
    adapter = init_trained(TuningConfig(rank=2), QUANTIZED, seed=0)
    with pytest.raises(ValueError, match="a kernel in int8: use apply"):
        lora.fold(QUANTIZED, adapter, scale=1.0)


def test_scales_are_split_as_their_kernels_outputs():
    device = jax.sharding.AbstractDevice("cpu", num_cores=None, platform="cpu")
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"), abstract_device=device)
    split = lambda name, size: choose_spec(name, (size,), mesh, DECODER_RULES)  # noqa: E731
    assert split("layers_0/ffn/up/kernel_scale", 24) == jax.sharding.PartitionSpec("model")
    assert split("layers_0/ffn/down/kernel_scale", 16) == jax.sharding.PartitionSpec("data")
