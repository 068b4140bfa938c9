"""Adapters over a real decoder: unfused, folded, chosen by name, and many at once."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from tiny import make_decoder, make_rows

from rag_jax import lora
from rag_jax.decoding import generate
from rag_jax.lora import core

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


def test_init_is_the_same_within_a_program_and_after_a_transformation():
    """Which sort the names of a tree."""
    params = {name: {"kernel": jnp.ones((4, 3))} for name in ("up", "gate", "down")}
    make = partial(lora.init, jax.random.key(0), targets=ALL, rank=2)
    for other in (jax.jit(make)(params), make(jax.tree.map(jnp.copy, params))):
        jax.tree.map(np.testing.assert_array_equal, make(params), other)


def test_init_over_integers_is_in_float32():
    params = {"up": {"kernel": jnp.ones((4, 3), jnp.int8)}}
    adapter = lora.init(jax.random.key(0), params, targets=ALL, rank=2)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adapter)} == {"float32"}


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


def test_an_adapter_in_float32_over_a_base_in_bfloat16():
    """As PEFT has it: what it adds is rounded to the base's type."""
    adapter = randomise(lora.init(jax.random.key(0), PARAMS, targets=ALL, rank=2))
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    folded = lora.fold(base, adapter, scale=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype(jnp.bfloat16)}
    wanted = FORWARD(lora.apply(PARAMS, adapter, scale=0.5))
    for params in (folded, lora.apply(base, adapter, scale=0.5)):
        logits = FORWARD(params)
        assert logits.dtype == jnp.bfloat16
        assert np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()
        generate(MODEL, params, [[1, 2, 3]], max_tokens=2, stop_ids=())


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
    assert kernel.path == "layers_1/ffn/up/kernel"
    assert kernel.array is PARAMS["layers_1"]["ffn"]["up"]["kernel"]


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
    with pytest.raises(ValueError, match="no layer reads an adapter next to 'embedding'"):
        lora.apply(PARAMS, adapter, scale=1.0)
    assert np.abs(FORWARD(lora.fold(PARAMS, adapter, scale=1.0)) - FORWARD(PARAMS)).max() > 0.1


def test_scales():
    assert lora.compute_scale(32.0, 2) == 16.0
    assert lora.compute_scale(32, 4, rank_stabilized=True) == 16.0


@jax.tree_util.register_dataclass
@dataclass
class Perceptron:
    """A module as other libraries have them: a tree with functions and lists in it."""

    layers: list
    activation: Callable


def make_foreign():
    """A fused kernel, a list of dicts, tuples, names with slashes and what is no array."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "attention": {"qkv": draw(6, 3, 4), "bias": draw(3, 4)},
        "mlp/~/in": {"w": draw(6, 5), "a": draw(5, 7), "b": draw(7)},
        "stack": [{"w": draw(6, 2)}, (draw(2, 3), draw(3))],
        "module": Perceptron([draw(3, 4), draw(4, 5)], jnp.tanh),
        3: draw(2, 2),
        "step": 7,
    }


FOREIGN = {"attention/qkv": (6, 3, 4), "mlp/~/in/w": (6, 5), "mlp/~/in/a": (5, 7)}
FOREIGN |= {"stack/0/w": (6, 2), "stack/1/0": (2, 3), "module/layers/1": (4, 5), "3": (2, 2)}


def test_trees_of_other_libraries():
    params = make_foreign()
    params.pop(3)  # with a name that is no string, JAX can't sort the tree's
    targets = "attention/qkv|.*/w|.*/a|stack/1/.*|module/layers/1"
    adapter = randomise(lora.init(jax.random.key(0), params, targets=targets, rank=2))
    assert list_paths(adapter) == FOREIGN.keys() - {"3"}
    folded = lora.fold(params, adapter, scale=0.5)
    assert jax.tree.structure(folded) == jax.tree.structure(params)
    flat = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    before, after, patches = flat(params), flat(folded), flat(adapter)
    for path, leaf in before.items():
        if path not in FOREIGN:
            assert after[path] is leaf
            continue
        a, b = patches[f"{path}/a"], patches[f"{path}/b"]
        assert a.shape == (leaf.shape[0], 2) and b.shape == (2, *leaf.shape[1:])
        delta = np.einsum("ir,r...->i...", a, b)
        np.testing.assert_allclose(after[path], leaf + 0.5 * delta, atol=1e-6)


def test_names_that_are_numbers():
    params = {0: {1: jnp.ones((3, 2))}, 10: jnp.ones((2, 2))}
    adapter = randomise(lora.init(jax.random.key(0), params, targets="0/1", rank=1))
    folded = lora.fold(params, adapter, scale=1.0)
    delta = np.asarray(adapter[0][1]["a"] @ adapter[0][1]["b"])
    np.testing.assert_allclose(folded[0][1], 1 + delta, atol=1e-6)
    assert folded[10] is params[10]


def test_stacked_layers_are_mapped_over():
    params = {"layers": {"w": jnp.zeros((3, 6, 5))}}
    keys = jax.random.split(jax.random.key(0), 3)
    adapter = jax.vmap(lambda k, p: lora.init(k, p, targets=".*", rank=2))(keys, params)
    shapes = jax.tree.map(jnp.shape, adapter)
    assert shapes == {"layers": {"w": {"a": (3, 6, 2), "b": (3, 2, 5)}}}


def make_bank(size, targets=ALL, rank=2, params=PARAMS, seed=0):
    """A bank whose adapters differ."""
    bank = lora.init_bank(jax.random.key(0), params, targets=targets, rank=rank, size=size)
    return randomise(bank, seed)


def take(bank, i):
    return jax.tree.map(lambda leaf: leaf[i], bank)


def assert_close(tree, other, atol=1e-5):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), tree, other)


def test_a_bank_starts_at_one_point():
    bank = lora.init_bank(jax.random.key(3), PARAMS, targets=ALL, rank=2, size=4)
    one = lora.init(jax.random.key(3), PARAMS, targets=ALL, rank=2)
    for i in range(4):
        assert_close(take(bank, i), one, atol=0)
    with pytest.raises(ValueError, match="no matrix of the parameters matches"):
        lora.init_bank(jax.random.key(3), PARAMS, targets="nothing", rank=2, size=4)


def test_stack_is_a_bank():
    bank = make_bank(3)
    assert_close(lora.stack([take(bank, i) for i in range(3)]), bank, atol=0)
    assert lora.stack([]) == {}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-2, 5), max_size=4), st.integers(0, 99), st.sampled_from([0.25, 16.0]))
def test_merge_is_the_weighted_sum(indices, seed, scale):
    """Over rows of a bank, repeated, absent or none at all, and kernels of more than two axes."""
    params = {"w": jnp.ones((6, 5)), "fused": {"w": jnp.ones((6, 2, 3))}}
    bank = make_bank(4, targets=".*", params=params, seed=seed)
    weights = np.random.default_rng(seed).normal(size=len(indices)).astype(np.float32)
    picked = lora.select(bank, np.asarray(indices, np.int32))
    merged = lora.merge(picked, scale=scale, weights=weights)
    unweighted = lora.merge(picked, scale=scale)
    shapes = {"a": (6, 2 * len(indices)), "b": (2 * len(indices), 2, 3)}
    assert {side: leaf.shape for side, leaf in merged["fused"]["w"].items()} == shapes
    for tree, factors in ((merged, weights), (unweighted, np.ones(len(indices)))):
        got = lora.fold(params, tree, scale=1.0)
        for get in (lambda tree: tree["w"], lambda tree: tree["fused"]["w"]):
            expected = np.array(get(params), np.float64)
            for i, factor in zip(indices, factors, strict=True):
                if 0 <= i < 4:
                    a, b = (np.asarray(get(bank)[side][i], np.float64) for side in "ab")
                    expected += scale * factor * np.einsum("ir,r...->i...", a, b)
            np.testing.assert_allclose(get(got), expected, atol=1e-4)


def test_a_list_merges_as_rows_of_a_bank_do():
    bank = make_bank(3)
    rows = [take(bank, i) for i in (2, 0, 2)]
    weights = np.asarray([1.0, -0.5, 2.0], np.float32)
    merged = lora.merge(rows, scale=4.0, weights=weights)
    assert_close(
        merged, lora.merge(lora.select(bank, np.asarray([2, 0, 2])), scale=4.0, weights=weights)
    )
    # The one that is there twice counts twice, and the order does not matter.
    params = lora.fold(PARAMS, take(bank, 0), scale=-2.0)
    expected = lora.fold(params, take(bank, 2), scale=12.0)
    assert_close(lora.fold(PARAMS, merged, scale=1.0), expected, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_adapters_of_scanned_layers_merge_layer_by_layer(count):
    """Three layers in one kernel `[L, in, out]`, whose `L` is no number of adapters."""
    layers, rng = 3, np.random.default_rng(0)
    params = {"ffn": {"kernel": jnp.asarray(rng.normal(size=(layers, 6, 4)), jnp.float32)}}

    def make(seed):
        keys = jax.random.split(jax.random.key(seed), layers)
        own = jax.vmap(lambda key, layer: lora.init(key, layer, targets=ALL, rank=2))(keys, params)
        return randomise(own, seed)

    adapters, weights = [make(seed) for seed in range(count)], np.arange(1.0, count + 1)
    fold = jax.vmap(lambda layer, own: lora.fold(layer, own, scale=1.0))
    wanted = np.asarray(params["ffn"]["kernel"], np.float64)
    for own, weight in zip(adapters, weights, strict=True):
        a, b = (np.asarray(own["ffn"]["kernel"][side], np.float64) for side in "ab")
        wanted = wanted + 4.0 * weight * a @ b
    merged = lora.merge(adapters, scale=4.0, weights=weights)
    np.testing.assert_allclose(fold(params, merged)["ffn"]["kernel"], wanted, atol=1e-4)
    bank = lora.stack(adapters)
    by_layer = jax.vmap(lambda own: lora.merge(own, scale=4.0, weights=weights), in_axes=1)
    assert_close(by_layer(bank), merged)


def test_no_adapter_changes_nothing():
    assert lora.merge([], scale=16.0) == {}
    empty = lora.merge(lora.select(make_bank(2), jnp.zeros((0,), jnp.int32)), scale=16.0)
    absent = lora.merge(lora.select(make_bank(2), np.asarray([-1, -1])), scale=16.0)
    expected = FORWARD(PARAMS)
    for adapter in ({}, empty, absent):
        np.testing.assert_array_equal(FORWARD(lora.apply(PARAMS, adapter, scale=1.0)), expected)
        assert_close(lora.fold(PARAMS, adapter, scale=1.0), PARAMS, atol=0)


def test_each_row_selects_and_merges_inside_jit():
    """`[B, k]` indices give `B` adapters, in one trace whatever the indices are."""
    bank, traces = make_bank(5), []

    @jax.jit
    def read(bank, indices, weights):
        traces.append(1)
        merged = lora.merge(lora.select(bank, indices), scale=0.5, weights=weights)
        return MODEL.apply({"params": lora.apply(PARAMS, merged, scale=1.0)}, TOKENS)

    rng = np.random.default_rng(1)
    for indices in ([[0, 4], [3, 3]], [[1, -1], [-1, -1]]):
        weights = jnp.asarray(rng.normal(size=(2, 2)), jnp.float32)
        read_rows = read(bank, jnp.asarray(indices), weights)
        for row, (own, factors) in enumerate(zip(indices, weights, strict=True)):
            params = PARAMS
            for i, factor in zip(own, factors, strict=True):
                if i >= 0:
                    params = lora.fold(params, take(bank, i), scale=0.5 * float(factor))
            np.testing.assert_allclose(read_rows[row], FORWARD(params)[row], atol=2e-5)
    assert len(traces) == 1


def test_select_takes_any_shape():
    bank = make_bank(3, targets=".*/up/kernel")
    one = lora.select(bank, 2)
    assert_close(one, take(bank, 2), atol=0)
    shapes = jax.tree.map(jnp.shape, lora.select(bank, jnp.zeros((4, 1, 2), jnp.int32)))
    assert shapes["layers_0"]["ffn"]["up"]["kernel"] == {
        "a": (4, 1, 2, 16, 2),
        "b": (4, 1, 2, 2, 24),
    }


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int16, jnp.int32])
def test_select_takes_indices_of_any_width(dtype):
    """The number of adapters may be beyond what an index can hold."""
    bank = {"kernel": {"a": jnp.ones((70_000, 1, 1)), "b": jnp.ones((70_000, 1, 1))}}
    indices = jnp.asarray([-1, 7], dtype)
    for select in (lora.select, jax.jit(lora.select)):
        a = select(bank, indices)["kernel"]["a"][:, 0, 0]
        assert a.tolist() == [0.0, 1.0]


def test_select_from_an_empty_bank():
    bank = lora.init_bank(jax.random.key(0), PARAMS, targets=".*/up/kernel", rank=2, size=0)
    found = jax.tree.leaves(lora.select(bank, jnp.asarray([0, -1])))
    shapes = [leaf.shape for leaf in jax.tree.leaves(bank)]
    assert [leaf.shape for leaf in found] == [(2, *shape[1:]) for shape in shapes]
    assert not any(leaf.any() for leaf in found)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int4, jnp.uint8, jnp.int32, bool])
def test_kernels_of_integers_are_named(dtype):
    params = {"up": {"kernel": jnp.ones((3, 2))}}
    adapter = lora.init(jax.random.key(0), params, targets=ALL, rank=1)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    name = f"^up/kernel: a kernel in {jnp.dtype(dtype)}"
    with pytest.raises(ValueError, match=f"{name}: use apply"):
        lora.fold(params, adapter, scale=1.0)


def test_what_does_not_go_together_is_named():
    up, down = (make_bank(2, targets=f".*_1/ffn/{name}/kernel") for name in ("up", "down"))
    with pytest.raises(ValueError, match="layers_1/ffn/.*/kernel: adapter . has no such kernel"):
        lora.merge([take(up, 0), take(down, 0)], scale=1.0)
    both = take(make_bank(1, targets=".*_1/ffn/(up|down)/kernel"), 0)
    for adapters in ([take(up, 0), both], [both, take(up, 0)]):
        with pytest.raises(ValueError, match="layers_1/ffn/down/kernel: adapter . has no such"):
            lora.merge(adapters, scale=1.0)
    wide = take(make_bank(2, targets=".*_1/ffn/up/kernel", rank=3), 0)
    message = (
        r"layers_1/ffn/up/kernel: adapter 0 has {'a': \(16, 2\), .*, adapter 1 has {'a': \(16, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        lora.merge([take(up, 0), wide], scale=1.0)
    with pytest.raises(ValueError, match="layers_1/ffn/up/kernel: a single adapter cannot be"):
        lora.merge(take(up, 0), scale=1.0)
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) for adapters \(2,\)"):
        lora.merge(up, scale=1.0, weights=jnp.ones(3))


@pytest.mark.parametrize("use", [lora.apply, lora.fold])
def test_adapters_of_another_model_are_named(use):
    adapter = make_bank(1, targets=".*_1/ffn/up/kernel")
    larger = make_decoder(ffn_size=32)[1]
    message = (
        r"layers_1/ffn/up/kernel: an adapter of \(16, 2\) and \(2, 24\) does not fit a kernel of "
        r"\(16, 32\)"
    )
    with pytest.raises(ValueError, match=message):
        use(larger, take(adapter, 0), scale=1.0)
    with pytest.raises(ValueError, match="layers_1/ffn/up/kernel: the parameters have no such"):
        use(make_decoder(num_layers=1)[1], take(adapter, 0), scale=1.0)
    if use is lora.fold:
        with pytest.raises(ValueError, match="an adapter of .* does not fit"):
            use(PARAMS, adapter, scale=1.0)


ABSENT = ["flax", "jaxtyping", "optax", "orbax", "safetensors", "scann", "tensorflow", "tokenizers"]
ABSENT += ["ml_collections", "transformers"]
WITHOUT = f"""
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Finder())
import jax, jax.numpy as jnp
"""
USE = """
params = {"up": {"kernel": jnp.ones((3, 2))}}
adapter = core.init(jax.random.key(0), params, targets=".*", rank=2)
bank = core.stack([adapter, adapter])
merged = core.merge(core.select(bank, jnp.asarray([0, 1])), scale=core.compute_scale(4, 2))
assert core.fold(params, merged, scale=1.0)["up"]["kernel"].shape == (3, 2)
assert set(core.apply(params, merged, scale=1.0)["up"]) == {"kernel", "lora_a", "lora_b"}
"""


def run_without(code):
    command = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_file_needs_jax_alone(tmp_path):
    """Copied alone into another project."""
    (tmp_path / "core.py").write_bytes(Path(core.__file__).read_bytes())
    code = (
        f"sys.path.insert(0, {str(tmp_path)!r}); import core; assert 'rag_jax' not in sys.modules"
    )
    done = run_without(code + USE)
    assert done.returncode == 0, done.stderr


def test_the_package_needs_jax_alone_until_it_meets_a_file():
    done = run_without("import rag_jax.lora as core" + USE + "core.load_peft('folder', None)")
    (last,) = done.stderr.strip().splitlines()[-1:]
    assert last.startswith("ModuleNotFoundError: files in PEFT's format need ") and any(
        f"need {name}, which is not installed" in last for name in ABSENT
    )


def test_shapes_in_signatures_are_still_checked():
    """By the checker of `conftest.py`, though annotations are strings."""
    with pytest.raises(TypeCheckError):
        lora.select(make_bank(2), np.ones(2, np.float32))
    with pytest.raises(TypeCheckError):
        lora.merge([], scale="1")


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
