"""On meshes of eight simulated devices everything is as on one; run by tests/test_sharding.py."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows

from rag_jax.config import MeshConfig, SRRAGConfig, TuningConfig
from rag_jax.decoding import Sampling, generate
from rag_jax.errors import RagJaxError
from rag_jax.models import load
from rag_jax.models.bert import Bert
from rag_jax.pipeline import compile_seconds
from rag_jax.sharding import (
    BERT_RULES,
    DECODER_RULES,
    count_data_rows,
    lay_out,
    list_places,
    make_mesh,
    place_params,
    shard_batch,
)
from rag_jax.systems.srrag import tune
from rag_jax.systems.srrag.data import Row, pack_rows
from rag_jax.training import compute_gradients, init_state, make_optimizer, make_step

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(8, 1), (4, 2), (1, 8)]

# Programs here run a few times only: compiling them is what takes time.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(params=SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def mesh(request):
    mesh = make_mesh(MeshConfig(*request.param))
    with jax.set_mesh(mesh):
        yield mesh


def assert_close(found, wanted, tolerance=2e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance),
        found,
        jax.tree.map(np.asarray, wanted),
    )


def off_mesh(function, *arguments, **settings):
    """What a function gives on the first device alone, computed once."""
    key = (function, repr((arguments, settings)))
    if key not in _known:
        with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
            _known[key] = jax.tree.map(np.asarray, function(*arguments, **settings))
    return _known[key]


_known = {}


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded", "bert"])
def test_load(mesh, name):
    wanted, found = load(GOLDEN / name), load(GOLDEN / name, mesh=mesh)
    rules = BERT_RULES if isinstance(found.model, Bert) else DECODER_RULES
    assert list_places(found.params) == list_places(lay_out(wanted.params, mesh, rules))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    half = load(GOLDEN / name, mesh=mesh, dtype="bfloat16").params
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


# Training.


def make_model(mesh, **changes):
    """The tiny decoder, on one device where `mesh` is None."""
    model, params = make_decoder(num_layers=1, **changes)
    return model, params if mesh is None else place_params(params, mesh, DECODER_RULES)


def make_session(mesh, mode):
    """SR-RAG's training on it."""
    model, params = make_model(mesh, vocab_size=36, tie_embeddings=True)
    return SimpleNamespace(
        config=SRRAGConfig(tuning=TuningConfig(mode=mode, rank=2)),
        base=SimpleNamespace(model=model, params=params),
        mesh=mesh or make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]),
    )


def make_parts(seed):
    """One microbatch of rows and one of pairs."""
    lengths = np.random.default_rng(seed).integers(9, 17, 24)
    rows = [
        Row(str(i), tokens, {"source": (4, 5), "verbalisation": (5, 7), "answer": (7, 9)})
        for i, tokens in enumerate(make_rows(lengths, seed=seed))
    ]
    settings = {"width": 16, "targets": 16, "batch": 8, "scale": 1 / 16, "reduction": "mean"}
    first, chosen, rejected = (pack_rows(rows[s : s + 8], **settings) for s in (0, 8, 16))
    pairs = {key: np.concatenate([chosen[key], rejected[key]]) for key in chosen}
    reference = np.random.default_rng(seed).normal(-8, 1, 16).astype(np.float32)
    pairs |= {"reference": reference, "pair": np.full(8, 1 / 16, np.float32)}
    return [("rows", first), ("pairs", pairs)]


def train(mode, mesh=None, steps=3):
    """The first gradients, and the logged metrics and trained arrays after some steps."""
    session = make_session(mesh, mode)
    start = tune.start_trainable(session)
    frozen = None if session.config.tuning.mode == "full" else session.base.params
    losses = tune.make_losses(session)
    optimizer = make_optimizer(session.config.stage1, steps)
    parts = [[(name, shard_batch(x)) for name, x in make_parts(i)] for i in range(steps)]
    places = list_places(start)
    grads = [
        compute_gradients(losses[name], start, frozen, arrays, places=places)[0]
        for name, arrays in parts[0]
    ]
    assert all(list_places(part) == places for part in grads)
    step, state, logs = make_step(losses, optimizer), init_state(start, optimizer), []
    before = list_places(state)
    for number in range(steps):
        state, metrics = step(state, frozen, parts[number])
        logs.append(jax.device_get(metrics))
        compiled = compile_seconds() if number == 0 else compiled
    assert list_places(state) == before
    assert compile_seconds() == compiled
    return grads, logs, state.params


@pytest.mark.parametrize(
    ("mesh", "mode"), [*((sizes, "full") for sizes in SIZES), ((4, 2), "lora")], indirect=["mesh"]
)
def test_training(mesh, mode):
    wanted, found = off_mesh(train, mode), train(mode, mesh)
    assert_close(found[:2], wanted[:2])
    # Adam divides by the gradient's size: where that is near zero, its rounding shows.
    assert_close(found[2], wanted[2], tolerance=1e-3)


# Decoding.


def write(mesh=None, *, sampling, prefix):
    """Two lots of texts, the second of which compiles nothing."""
    model, params = make_model(mesh)
    texts = []
    for seed in range(2):
        prompts = make_rows([3, 9, 4, 5, 12, 2, 7], seed=seed)
        before = compile_seconds()
        texts += generate(
            model,
            params,
            prompts,
            prefix=prefix,
            max_tokens=7,
            stop_ids=(3,),
            batch_size=16,
            sampling=sampling,
        )
    assert compile_seconds() == before
    return texts


GREEDY = {"sampling": Sampling(), "prefix": (5, 6, 7)}
SAMPLED = {"sampling": Sampling(temperature=0.7, top_k=9), "prefix": ()}


@pytest.mark.parametrize(
    ("mesh", "settings"),
    [*((sizes, GREEDY) for sizes in SIZES), ((4, 2), SAMPLED)],
    indirect=["mesh"],
)
def test_generation(mesh, settings):
    assert write(mesh, **settings) == off_mesh(write, **settings)


def test_a_batch_that_does_not_divide(mesh):
    model, params = make_decoder()
    rows = count_data_rows()
    if rows == 1:
        return
    with pytest.raises(RagJaxError, match=f"batch_size=9: must be a multiple of the mesh's {rows}"):
        generate(model, params, [[1]], max_tokens=1, stop_ids=(), batch_size=9)
    with pytest.raises(RagJaxError, match="rows of a batch=9 does not divide the mesh"):
        shard_batch(np.zeros((9, 2)))
