"""Fused attention against XLA's, which the tests of the decoder hold against NumPy's.

Splash attention runs in Pallas' interpreter, and cuDNN's place is taken by XLA's version of the
same call.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows

from rag_jax.models import load
from rag_jax.models.nn import attention, decoder
from rag_jax.models.nn.attention import SegmentMask, choose_kernel, mask_rows
from rag_jax.models.nn.layers import attend

ROWS, WIDTH = 2, 151  # odd, not a multiple of a tile, and more than one
FUSED = ("cudnn", "splash")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    replaced = partial(attention._attend_cudnn, implementation="xla")
    monkeypatch.setattr(attention, "_attend_cudnn", replaced)
    with jax.numpy_rank_promotion("allow"):  # Pallas' own code promotes
        yield


def draw_segments():
    """Three texts and padding in the first row, one text and padding in the middle in the other."""
    segments = np.ones((ROWS, WIDTH), np.int32)
    segments[0, 20:110], segments[0, 110:140], segments[0, 140:] = 2, 3, 0
    mask = np.ones((ROWS, WIDTH), bool)
    mask[0, 140:], mask[1, 30:60] = False, False
    return {"plain": (mask | True, None), "padded": (mask, None), "packed": (mask, segments)}


@pytest.mark.parametrize(
    ("kind", "causal"), [("plain", True), ("padded", True), ("packed", True), ("packed", False)]
)
@pytest.mark.parametrize("kernel", FUSED)
def test_a_kernel_attends_as_xla(kernel, kind, causal):
    """Outputs of tokens, and gradients of queries, keys and values; three queries a key head."""
    rng = np.random.default_rng(0)
    token_mask, segments = draw_segments()[kind]
    shapes = (ROWS, 2, 3 * WIDTH, 8), (ROWS, 2, 8, WIDTH), (ROWS, 2, WIDTH, 8)
    inputs = [jnp.asarray(2 * rng.normal(size=shape), jnp.float32) for shape in shapes]
    weights = rng.normal(size=shapes[0]) * np.tile(token_mask, (1, 3))[:, None, :, None]

    def run(kernel):
        mask = mask_rows(jnp.asarray(token_mask), segments, kernel, causal=causal)
        if kernel == "xla":
            mask = jnp.tile(mask[:, None], (1, 1, 3, 1))
        else:
            assert isinstance(mask, SegmentMask)

        def loss(query, keys, values):
            y = attend(query, keys, values, mask) * weights
            return y.sum(), y

        (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return y, *grads

    for found, wanted in zip(run(kernel), run("xla"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-5)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_decoder_reads_packed_rows_with_a_kernel(remat, monkeypatch):
    model, params = make_decoder(num_layers=1)
    model = model.clone(remat=remat)
    tokens = jnp.asarray(make_rows([WIDTH] * ROWS))
    token_mask, segments = draw_segments()["packed"]
    texts = {"segments": segments, "positions": np.tile(np.arange(WIDTH), (ROWS, 1))}

    def run(kernel):
        monkeypatch.setattr(decoder, "choose_kernel", lambda *sizes: kernel)

        def loss(params):
            hidden = model.apply({"params": params}, tokens, **texts, method="hidden").hidden
            hidden = hidden * token_mask[:, :, None]
            return (hidden**2).sum(), hidden

        (_, hidden), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return hidden, grads

    wanted = run("xla")
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, run("splash"), wanted)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_windows_by_a_kernel_are_those_by_blocks(kind, monkeypatch):
    """One layer slides and one does not; padding stands between tokens of a text."""
    kinds = {"window": 37, "sliding_layers": (0,), "unrotated_layers": (1,)}
    model, params = make_decoder(**kinds)
    tokens = jnp.asarray(make_rows([WIDTH] * ROWS))
    token_mask, segments = draw_segments()[kind]
    texts = {"mask": token_mask, "segments": segments}
    texts["positions"] = np.tile(np.arange(WIDTH), (ROWS, 1))

    def run(kernel):
        monkeypatch.setattr(decoder, "choose_kernel", lambda *sizes: kernel)
        hidden = model.apply({"params": params}, tokens, **texts, method="hidden").hidden
        return hidden * token_mask[:, :, None]

    wanted = run("xla")
    for kernel in FUSED:
        np.testing.assert_allclose(run(kernel), wanted, rtol=1e-3, atol=1e-3)


def test_an_encoder_decoder_reads_packed_rows_with_a_kernel(monkeypatch):
    loaded = load(GOLDEN / "bart")
    apply = partial(loaded.model.apply, {"params": loaded.params})
    rows = np.random.default_rng(0).integers(0, loaded.config.vocab_size, (2, 24))
    segments = np.where(np.arange(24) < np.asarray([[9], [20]]), 1, 2)
    texts = {"segments": segments, "positions": np.tile(np.arange(24), (2, 1))}

    def run(kernel):
        monkeypatch.setattr("rag_jax.models.nn.bart.choose_kernel", lambda *sizes: kernel)
        encoded = apply(rows, **texts, method="encode")
        source = {"prefix": apply(encoded, method="read_source"), "prefix_mask": segments > 1}
        return encoded, apply(rows, **texts, **source, method="hidden").hidden

    for found, wanted in zip(run("splash"), run("xla"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("platform", "sizes", "kernel"),
    [
        ("cpu", (8, 8192, 128, "bfloat16"), "xla"),
        ("tpu", (8, 8192, 64, "float32"), "splash"),
        ("tpu", (8, 512, 128, "bfloat16"), "xla"),
        ("gpu", (8, 8192, 128, "bfloat16"), "cudnn"),
        ("gpu", (8, 8192, 128, "float32"), "xla"),
        ("gpu", (8, 8192, 256, "bfloat16"), "xla"),
        ("gpu", (8, 8192, 100, "float16"), "xla"),
    ],
)
def test_the_kernel_follows_from_platform_and_sizes(platform, sizes, kernel, monkeypatch):
    monkeypatch.setattr(attention, "find_platform", lambda: platform)
    monkeypatch.setattr(attention, "_has_flash_attention", lambda: True)
    assert choose_kernel(*sizes) == kernel
    monkeypatch.setattr(attention, "count_data_rows", lambda: 3)
    assert choose_kernel(*sizes) == "xla"


def test_an_old_gpu_has_no_kernel(monkeypatch):
    monkeypatch.setattr(attention, "find_platform", lambda: "gpu")
    monkeypatch.setattr(attention, "_has_flash_attention", lambda: False)
    assert choose_kernel(8, 8192, 128, "bfloat16") == "xla"


def describe_mesh(data, model):
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.AbstractMesh((data, model), ("data", "model"), auto, abstract_device=device)


@pytest.mark.parametrize(("data", "model", "heads"), [(1, 1, 4), (2, 2, 2), (2, 4, 4)])
def test_splash_attention_is_lowered_for_tpus(data, model, heads):
    """Each device its rows, and its heads where `model` divides the two key heads."""
    network, params = make_decoder(num_layers=1, num_heads=4, num_kv_heads=2, head_dim=64)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    tokens = jax.ShapeDtypeStruct((4, 1032), jnp.int32)
    with jax.sharding.use_abstract_mesh(describe_mesh(data, model)):
        read = jax.jit(lambda p, t: network.apply({"params": p}, t, method="hidden").hidden)
        traced = read.trace(params, tokens)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text
    assert f"bf16[{4 // data},{heads},1152,64]" in str(traced.jaxpr)
    assert "[4,1,1032,1032]" not in str(traced.jaxpr)


def test_splash_attention_has_a_window():
    sizes = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    network, params = make_decoder(**sizes, window=256, sliding_layers=(0,))
    tokens = jax.ShapeDtypeStruct((1, 1032), jnp.int32)
    with jax.sharding.use_abstract_mesh(describe_mesh(1, 1)):
        read = jax.jit(lambda p, t: network.apply({"params": p}, t, method="hidden").hidden)
        text = read.trace(params, tokens).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text and "1032x1032" not in text


def test_cudnn_has_an_even_number_of_tokens():
    shapes = (ROWS, 2, 3 * WIDTH, 8), (ROWS, 2, 8, WIDTH), (ROWS, 2, WIDTH, 8)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    mask = SegmentMask(jnp.zeros((ROWS, WIDTH), jnp.int32), "cudnn")
    text = str(jax.make_jaxpr(lambda *given: attend(*given, mask))(*inputs))
    assert f"{WIDTH + 1},{WIDTH + 1}]" in text and f"{WIDTH},{WIDTH}]" not in text


def test_tiles_pad_little():
    assert [attention._choose_block(width) for width in (512, 1024, 1032, 1200, 8192, 100)] == [
        *(512, 512, 128, 256, 512, 128),
    ]
