"""Unfused adapters in Flax models that know nothing of this library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from rag_jax import lora
from rag_jax.lora.flax_layers import adapt_nnx, intercept_linen

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
ALL = ".*kernel"


class LinenModel(nn.Module):
    """Dense layers, fused and not, with several axes in and out, and one in bfloat16."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        x = nn.relu(nn.Dense(8, name="up")(x))
        x = nn.DenseGeneral((2, 4), use_bias=False, name="split")(inputs=x)
        x = nn.DenseGeneral(6, axis=(-1, 1), name="join")(x.swapaxes(1, 2))
        return nn.Dense(3, param_dtype=jnp.bfloat16, name="half")(x)


class NNXModel(nnx.Module):
    """The same layers in NNX, in a list, a dict and attributes."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)])
        self.split = nnx.LinearGeneral(8, (2, 4), use_bias=False, rngs=rngs)
        self.ends = nnx.Dict(join=nnx.LinearGeneral((2, 4), 6, axis=(-1, 2), rngs=rngs))

    def __call__(self, x):
        x = x + self.attention(x)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.ends["join"](self.split(x))


LINEN = LinenModel()
LINEN_PARAMS = LINEN.init(jax.random.key(0), X)["params"]
MODEL = NNXModel(nnx.Rngs(0))
NNX_PARAMS = nnx.to_pure_dict(nnx.state(MODEL, nnx.Param))


def read_linen(adapter, x=X):
    with nn.intercept_methods(intercept_linen):
        return LINEN.apply({"params": lora.apply(LINEN_PARAMS, adapter, scale=0.5)}, x)


def fold_linen(adapter, x=X):
    return LINEN.apply({"params": lora.fold(LINEN_PARAMS, adapter, scale=0.5)}, x)


def read_nnx(adapter, x=X):
    return adapt_nnx(MODEL, adapter, scale=0.5)(x)


def fold_nnx(adapter, x=X):
    folded = lora.fold(NNX_PARAMS, adapter, scale=0.5)
    return nnx.merge(nnx.graphdef(MODEL), folded)(x)


CASES = {
    "linen": (read_linen, fold_linen, LINEN_PARAMS, ".*(attention|up|split|join).*kernel"),
    "nnx": (read_nnx, fold_nnx, NNX_PARAMS, ALL),
}
case = pytest.mark.parametrize("name", CASES)


def draw_bank(params, targets, size=3):
    bank = lora.init_bank(jax.random.key(0), params, targets=targets, rank=2, size=size)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.1, x.dtype), bank)


def take(bank, i):
    return jax.tree.map(lambda leaf: leaf[i], bank)


@case
def test_unfused_equals_folded(name):
    read, fold, params, targets = CASES[name]
    adapter = take(draw_bank(params, targets), 0)
    count = sum(1 for _ in lora.core.list_kernels(adapter))
    assert count == {"linen": 7, "nnx": 8}[name]
    np.testing.assert_allclose(jax.jit(read)(adapter), fold(adapter), atol=1e-6, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, adapter)
    np.testing.assert_array_equal(read(zero), fold(zero))
    assert np.abs(read(adapter) - read(zero)).max() > 0.1


@case
def test_gradients_are_the_adapters_alone(name):
    read, fold, params, targets = CASES[name]
    adapter = take(draw_bank(params, targets), 0)
    before = jax.tree.map(jnp.copy, params)
    ours, theirs = (
        jax.grad(lambda adapter, use=use: jnp.square(use(adapter)).mean())(adapter)
        for use in (read, fold)
    )
    assert jax.tree.structure(ours) == jax.tree.structure(adapter)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, before, params)


@case
def test_each_document_has_its_own_adapter(name):
    read, fold, params, targets = CASES[name]
    bank, x = draw_bank(params, targets), jnp.stack([X, 2 * X, -X])
    together = jax.vmap(read)(bank, x)
    for i in range(3):
        np.testing.assert_allclose(together[i], fold(take(bank, i), x[i]), atol=1e-6, rtol=1e-6)


def test_an_adapter_keeps_the_layers_dtype():
    adapter = take(draw_bank(LINEN_PARAMS, "half/kernel"), 0)
    x = X.astype(jnp.bfloat16)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), adapter)
    layer, params = nn.Dense(3, dtype=jnp.bfloat16), LINEN_PARAMS["half"]
    x = x[..., : len(params["kernel"])]
    with nn.intercept_methods(intercept_linen):
        y = layer.apply({"params": lora.apply(params, wide["half"], scale=1.0)}, x)
    assert y.dtype == jnp.bfloat16


def test_a_model_that_is_one_layer():
    model = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    adapter = take(draw_bank(params, "kernel"), 0)
    folded = lora.fold(params, adapter, scale=2.0)
    expected = X @ folded["kernel"] + folded["bias"][None, None]
    np.testing.assert_allclose(adapt_nnx(model, adapter, scale=2.0)(X), expected, atol=1e-5)


class Plain(nn.Module):
    """A layer of a project's own, which knows no adapters."""

    use: str

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.ones, (8, 3))
        uses = {
            "matmul": lambda: x @ kernel,
            "einsum": lambda: jnp.einsum("btd,df->btf", x, kernel),
            "transposed": lambda: x @ kernel.T.T,
            "cast": lambda: x @ kernel.astype(jnp.float32),
            "numpy": lambda: np.asarray(x) @ np.asarray(kernel),
            "lax": lambda: jax.lax.dot_general(x, kernel, (((2,), (0,)), ((), ()))),
        }
        return uses[self.use]()


@pytest.mark.parametrize("use", ["matmul", "einsum", "transposed", "cast", "numpy", "lax"])
@pytest.mark.parametrize("intercepted", [False, True])
def test_a_layer_that_knows_no_adapters_names_itself(use, intercepted):
    """Before, the model ran and the adapter changed nothing."""
    model = nn.Sequential([nn.Dense(8), Plain(use)])
    params = model.init(jax.random.key(0), X)["params"]
    adapted = lora.apply(params, take(draw_bank(params, "layers_1/kernel"), 0), scale=1.0)
    message = "layers_1/kernel: this layer is not one of rag_jax.models .* use lora.fold"
    interceptors = [intercept_linen] if intercepted else []
    with pytest.raises((ValueError, AttributeError), match=message):
        for interceptor in interceptors:
            with nn.intercept_methods(interceptor):
                model.apply({"params": adapted}, X)
        model.apply({"params": adapted}, X)


def test_linen_without_the_interceptor_names_the_layer():
    adapted = lora.apply(LINEN_PARAMS, take(draw_bank(LINEN_PARAMS, "up/kernel"), 0), scale=1.0)
    with pytest.raises(ValueError, match="^up/kernel: this layer .* use lora.fold .*flax_layers"):
        LINEN.apply({"params": adapted}, X)


class Doubled(nn.Dense):
    """A layer of one's own, which Flax's methods do not know."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x) * 2


class DoubledLinear(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x) * 2


class Repeated(nnx.Module):
    """One layer in two places, or one kernel in two layers."""

    def __init__(self, *, shares_kernel):
        rngs = nnx.Rngs(0)
        self.first, self.other = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.second = nnx.Linear(8, 8, rngs=rngs) if shares_kernel else self.first
        if shares_kernel:
            self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(nnx.relu(self.other(self.first(x))))


def test_a_layer_with_a_method_of_its_own_is_named():
    """Before, the adapter was added behind the layer, not within it."""
    for wrap in (lambda kind: kind, nn.remat, nn.jit):
        for kind in (nn.Dense, Doubled):
            model = wrap(kind)(3)
            params = model.init(jax.random.key(0), X)["params"]
            adapter = take(draw_bank(params, "kernel"), 0)
            wanted = model.apply({"params": lora.fold(params, adapter, scale=1.0)}, X)
            with nn.intercept_methods(intercept_linen):
                adapted = {"params": lora.apply(params, adapter, scale=1.0)}
                if kind is nn.Dense:
                    np.testing.assert_allclose(model.apply(adapted, X), wanted, atol=1e-5)
                    continue
                with pytest.raises(ValueError, match="^kernel: .*Doubled computes more than Dense"):
                    model.apply(adapted, X)
    model = DoubledLinear(8, 3, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match="^kernel: DoubledLinear computes more than Linear"):
        adapt_nnx(model, take(draw_bank(params, "kernel"), 0), scale=1.0)


@pytest.mark.parametrize("shares_kernel", [False, True])
def test_a_layer_that_is_in_two_places_is_named(shares_kernel):
    model = Repeated(shares_kernel=shares_kernel)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match="^first/kernel: is in two places of the model: use lora"):
        adapt_nnx(model, take(draw_bank(params, "first/kernel"), 0), scale=1.0)
    adapter = take(draw_bank(params, "other/kernel"), 0)
    wanted = nnx.merge(nnx.graphdef(model), lora.fold(params, adapter, scale=1.0))(X)
    np.testing.assert_allclose(adapt_nnx(model, adapter, scale=1.0)(X), wanted, atol=1e-5)


def one_kernel():
    params = {"kernel": jnp.ones((8, 3))}
    return params, take(draw_bank(params, "kernel"), 0)


def test_what_cannot_hold_an_adapter_is_named():
    params, adapter = one_kernel()
    applied = lora.apply(params, adapter, scale=1.0)
    with pytest.raises(ValueError, match="kernel: the parameters have no such kernel"):
        lora.apply(applied, adapter, scale=1.0)  # one adapter a kernel: merge them
    with pytest.raises(ValueError, match="^kernel: 3 adapters for one layer: map over the bank"):
        bank = lora.apply(params, draw_bank(params, "kernel"), scale=1.0)
        with nn.intercept_methods(intercept_linen):
            nn.Dense(3, use_bias=False).apply({"params": bank}, X)
    with pytest.raises(ValueError, match="stack: a layer of ours is a dict, not this: use fold"):
        params = {"stack": [{"kernel": jnp.ones((8, 3))}]}
        lora.apply(params, take(draw_bank(params, ALL), 0), scale=1.0)
    with pytest.raises(ValueError, match="^conv/kernel: a layer Conv reads no adapter: use lora.f"):

        class Convolution(nnx.Module):
            def __init__(self, rngs):
                self.conv = nnx.Conv(8, 3, (1,), rngs=rngs)

        model = Convolution(nnx.Rngs(0))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        adapt_nnx(model, take(draw_bank(params, "conv/kernel"), 0), scale=1.0)
    with pytest.raises(ValueError, match="split/kernel: an adapter of .* does not fit"):
        adapt_nnx(MODEL, draw_bank(NNX_PARAMS, "split/kernel"), scale=1.0)
    batched = nn.DenseGeneral(3, batch_dims=(0,))
    params = batched.init(jax.random.key(0), X)["params"]
    with pytest.raises(ValueError, match="^kernel: a layer with batch_dims reads no adapter"):
        adapter = take(draw_bank(params, "kernel"), 0)
        with nn.intercept_methods(intercept_linen):
            batched.apply({"params": lora.apply(params, adapter, scale=1.0)}, X)
