"""Where arrays lie: rules, fallbacks and what follows what. Meshes of eight: tests/on_mesh."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from tiny import CONFIG

from rag_jax import lora
from rag_jax.config import MeshConfig, build
from rag_jax.models.io.weights import list_slots
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.runtime.device_bytes import count_bytes_per_device, count_replicated
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    abstract_params,
    check_batches,
    choose_spec,
    count_data_rows,
    make_mesh,
    shard_batch,
    shardings_like,
)

ROOT = Path(__file__).parents[2]
P = PartitionSpec
BERT = BertConfig(
    vocab_size=1000,
    hidden_size=256,
    ffn_size=1024,
    num_layers=2,
    num_heads=4,
    num_types=2,
    norm_eps=1e-12,
    max_length=64,
)
DECODER = replace(CONFIG, vocab_size=1001, hidden_size=256, ffn_size=688, head_dim=32)
BART = BartConfig(
    vocab_size=1000,
    hidden_size=256,
    encoder_layers=2,
    decoder_layers=2,
    encoder_ffn_size=1024,
    decoder_ffn_size=1024,
    max_length=62,
)
FAMILIES = {
    "decoder": (DECODER, DECODER_RULES),
    "tied": (replace(DECODER, tie_embeddings=True), DECODER_RULES),
    "stablelm": (replace(DECODER, layer_norm=True, qkv_bias=True), DECODER_RULES),
    "gemma3": (replace(DECODER, query_key_norm=True, output_norms=True), DECODER_RULES),
    "bert": (BERT, BERT_RULES),
    "dpr": (replace(BERT, projection_size=128), BERT_RULES),
    "bart": (BART, BART_RULES),
}


def mesh_of(data, model):
    return AbstractMesh((data, model), ("data", "model"))


def describe(config):
    """A model's parameters as shapes."""
    tree = {}
    for slot in list_slots(config):
        *parents, leaf = slot.path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.ShapeDtypeStruct(slot.shape, jnp.float32)
    return tree


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(8, 1), (4, 2), (1, 8), (2, 2)])
def test_every_parameter_has_one_rule_and_little_is_on_every_device(family, sizes):
    config, rules = FAMILIES[family]
    mesh = mesh_of(*sizes)
    laid = abstract_params(describe(config), mesh, rules)
    total = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(laid))
    assert count_replicated(laid) < 0.02 * total
    assert count_bytes_per_device(laid) < total * (1 / mesh.size + 0.02)


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("layers_0/attention/query/kernel", (16, 32), P("data", "model")),
        ("layers_11/ffn/down/kernel", (32, 16), P("model", "data")),
        ("final_norm/scale", (16,), P()),
        ("head/kernel", (16, 64), P("data", "model")),
        # 31 rows divide over nothing: `model` goes where `data` is already.
        ("embed/embedding", (31, 16), P(None, ("data", "model"))),
        ("embed/embedding", (31, 4), P(None, "data")),
        ("embed/embedding", (31, 3), P()),
        # Both axes change places.
        ("layers_0/ffn/up/kernel", (6, 16), P(None, ("model", "data"))),
        # Factors, in an adapter and beside the kernel; and what has a parameter's path in its own.
        ("adapter/layers_0/ffn/up/kernel/a", (16, 2), P("data")),
        ("adapter/layers_0/ffn/up/kernel/b", (2, 32), P(None, "model")),
        ("layers_0/ffn/down/kernel/array", (32, 16), P("model", "data")),
        ("layers_0/ffn/down/lora_a", (32, 2), P("model")),
        ("layers_0/ffn/down/lora_b", (2, 16), P(None, "data")),
        ("opt_state/1/0/mu/weights/layers_0/ffn/up/kernel", (16, 32), P("data", "model")),
        ("opt_state/1/0/count", (), P()),
    ],
)
def test_specs(path, shape, wanted):
    assert choose_spec(path, shape, mesh_of(4, 2), DECODER_RULES) == wanted


def test_axes_of_one_device_are_left_out():
    mesh, path = mesh_of(8, 1), "layers_0/ffn/down/kernel"
    assert choose_spec(path, (32, 16), mesh, DECODER_RULES) == P(None, "data")
    assert choose_spec(path, (32, 16), mesh_of(1, 1), DECODER_RULES) == P()


@given(
    st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 5, 8])),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.lists(st.sampled_from([None, "data", "model"]), max_size=3, unique=True),
)
def test_shards_always_come_out_even(sizes, shape, axes):
    mesh = mesh_of(*sizes)
    spec = choose_spec("x", shape, mesh, [("x", P(*axes))])
    pieces = NamedSharding(mesh, spec).shard_shape(tuple(shape))  # raises where uneven
    used = [a for entry in spec for a in ((entry,) if isinstance(entry, str) else entry or ())]
    assert set(used) <= set(axes[: len(shape)])
    # An axis stays unused only if no dimension is left that it divides.
    for axis in set(axes[: len(shape)]) - set(used) - {None}:
        size = mesh.shape[axis]
        assert size == 1 or all(piece % size for piece in pieces)


@pytest.mark.parametrize(("path", "count"), [("layers_0/ffn/middle/kernel", 0), ("x/twice", 2)])
def test_a_parameter_without_just_one_rule_is_refused(path, count):
    rules = (*DECODER_RULES, ("twice", P()), ("x/twice", P("data")))
    with pytest.raises(RagJaxError, match=f"parameter {path}: {count} sharding rules match it"):
        choose_spec(path, (16, 32), mesh_of(4, 2), rules)


def test_the_optimizer_follows_the_trained_tree():
    """Moments lie as weights, and as both factors of an adapter; counts on every device."""
    weights = describe(FAMILIES["decoder"][0])
    adapter = jax.eval_shape(
        lambda tree: lora.init(jax.random.key(0), tree, targets=".*/kernel", rank=2), weights
    )
    rules = (*DECODER_RULES, ("new_tokens", P()))
    new_tokens = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    trained = {"weights": weights, "adapter": adapter, "new_tokens": new_tokens}
    trained = abstract_params(trained, mesh_of(4, 2), rules)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = shardings_like(jax.eval_shape(optimizer.init, trained), trained)
    moments = state[1][0]
    for moment in (moments.mu, moments.nu):
        jax.tree.map(lambda m, p: _assert_equal(m.sharding, p.sharding), moment, trained)
    assert moments.count.sharding.spec == P()
    assert state == abstract_params(jax.eval_shape(optimizer.init, trained), mesh_of(4, 2), rules)


def _assert_equal(left, right):
    assert left == right


@pytest.mark.parametrize(
    ("config", "wanted"),
    [((-1, 1), (1, 1)), ((1, -1), (1, 1)), ((1, 1), (1, 1)), ((2, -1), None), ((2, 1), None)],
)
def test_mesh_sizes(config, wanted):
    config = MeshConfig(*config)
    if wanted:
        assert tuple(make_mesh(config).shape.values()) == wanted
    else:
        message = f"config.mesh.data={config.data} by config.mesh.model={config.model} does not"
        with pytest.raises(RagJaxError, match=message):
            make_mesh(config)


@pytest.mark.parametrize("values", [{"data": -1, "model": -1}, {"data": 0}, {"model": -2}])
def test_mesh_sizes_refused(values):
    with pytest.raises(RagJaxError, match=r"config(\.data|\.model)=-?\d"):
        build(MeshConfig, values)


def test_batches_that_the_mesh_does_not_divide():
    check_batches(mesh_of(4, 2), {"config.a": 8, "config.b": 4})
    with pytest.raises(RagJaxError, match="config.b=6 does not fit the mesh: make it a multipl"):
        check_batches(mesh_of(4, 2), {"config.a": 8, "config.b": 6})


def test_one_device_is_left_alone():
    rows = np.ones((3, 2))
    for mesh in (make_mesh(MeshConfig()), jax.sharding.Mesh(np.empty((), object), ())):
        with jax.set_mesh(mesh):
            assert count_data_rows() == 1
            assert shard_batch(rows) is rows


def test_on_eight_devices():
    """tests/on_mesh, in a process that simulates them."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    }
    files = ["tests/on_mesh/cases.py", "tests/on_mesh/system_cases.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_tokens_that_a_program_is_worth():
    assert count_program_tokens(None, on_cpu=1600) == 1600
    assert count_program_tokens(0, on_cpu=1600) == 0
    device = jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
    tpu = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(tpu):
        assert count_program_tokens(None, on_cpu=1600) == 10_000_000
        assert count_program_tokens(7, on_cpu=1600) == 7


def test_bytes_of_an_array_without_a_sharding():
    assert count_bytes_per_device({"a": jax.ShapeDtypeStruct((3, 5), np.int16)}) == 30
