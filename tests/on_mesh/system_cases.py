"""The systems' training and decoding on meshes; run by tests/runtime/test_sharding.py."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_mesh.common import assert_close, make_model, off_mesh
from tiny import make_rows

from rag_jax.config import MeshConfig
from rag_jax.data.batches import pad_rows
from rag_jax.decoding import BeamConfig
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.sharding import make_mesh, shard_batch, shardings_of
from rag_jax.systems.rag import steps as rag
from rag_jax.systems.srrag import steps
from rag_jax.systems.srrag.config import NewTokensConfig, SRRAGConfig
from rag_jax.systems.srrag.data import TERMS
from rag_jax.systems.srrag.session import Session
from rag_jax.training.loop import compute_gradients, init_state, make_optimizer, make_step
from rag_jax.training.rows import Row, pack_rows


def make_session(mesh, mode):
    """SR-RAG's training on it."""
    model, params = make_model(mesh, vocab_size=36, tie_embeddings=True)
    # The last four tokens are the new ones.
    ids = {"<EOQ>": 32, "<EOK>": 33, "<Self>": 34, "<Wiki>": 35}
    tokenizer = SimpleNamespace(token_id=ids.__getitem__)
    mesh = mesh or make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1])
    sizes = MeshConfig(*mesh.shape.values())
    config = SRRAGConfig(mesh=sizes, tuning=NewTokensConfig(mode=mode, rank=2))
    session = Session(config, mesh.devices.flatten().tolist())
    assert session.mesh == mesh
    session.base = SimpleNamespace(model=model, params=params, tokenizer=tokenizer)
    assert sorted(session.new_ids) == [32, 33, 34, 35]
    return session


def make_parts(seed):
    """One microbatch of rows and one of pairs."""
    lengths = np.random.default_rng(seed).integers(9, 17, 24)
    rows = [
        Row(str(i), tokens, {"source": (4, 5), "verbalisation": (5, 7), "answer": (7, 9)})
        for i, tokens in enumerate(make_rows(lengths, seed=seed))
    ]
    settings = {"width": 16, "targets": 16, "batch": 8, "scale": 1 / 16, "reduction": "mean"}
    settings["terms"] = TERMS
    first = pack_rows([[row] for row in rows[:8]], **settings)
    both = [list(pair) for pair in zip(rows[8:16], rows[16:], strict=True)]
    pairs = pack_rows(both, **settings | {"width": 32})
    reference = np.random.default_rng(seed).normal(-8, 1, (8, 2)).astype(np.float32)
    pairs |= {"reference": reference, "pair": np.full((8, 1), 1 / 16, np.float32)}
    return [("rows", first), ("pairs", pairs)]


def train(mode, mesh=None, steps=3):
    """The first gradients, and the logged metrics and trained arrays after some steps."""
    session = make_session(mesh, mode)
    trainable, losses = session.trainable, session.losses
    start, frozen = trainable.start(), trainable.frozen
    assert frozen is (None if mode == "full" else session.base.params)
    optimizer = make_optimizer(session.config.stage1, steps)
    parts = [[(name, shard_batch(x)) for name, x in make_parts(i)] for i in range(steps)]
    shardings = shardings_of(start)
    grads = [
        compute_gradients(losses[name], start, frozen, arrays, shardings=shardings)[0]
        for name, arrays in parts[0]
    ]
    assert all(shardings_of(part) == shardings for part in grads)
    step, state, logs = make_step(losses, optimizer), init_state(start, optimizer), []
    before = shardings_of(state)
    for number in range(steps):
        state, metrics = step(state, frozen, parts[number])
        logs.append(jax.device_get(metrics))
        compiled = compile_seconds() if number == 0 else compiled
    assert shardings_of(state) == before
    assert compile_seconds() == compiled
    return grads, logs, state.params


@pytest.mark.parametrize(
    ("mesh", "mode"), [((8, 1), "full"), ((1, 8), "full"), ((4, 2), "lora")], indirect=["mesh"]
)
def test_training(mesh, mode):
    wanted, found = off_mesh(train, mode), train(mode, mesh)
    assert_close(found[:2], wanted[:2])
    # Adam divides by the gradient's size: where that is near zero, its rounding shows.
    assert_close(found[2], wanted[2], tolerance=1e-3)


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_beams_under_documents(mesh):
    """RAG's decoders: beams over a mixture, beams of every document, scores of all their texts."""
    wanted, found = off_mesh(decode_documents), decode_documents(mesh)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, tolerance=1e-4)


def decode_documents(mesh=None):
    model, params = make_model(mesh)
    rng = np.random.default_rng(0)
    settings = {"max_tokens": 4, "stop_ids": (3,), "config": BeamConfig(2)}
    results = []
    for seed in range(2):
        compiled = compile_seconds()
        rows = make_rows(rng.integers(2, 10, 16), seed=seed)
        tokens, mask = shard_batch(pad_rows(rows, 12, pad_id=0))
        scores = shard_batch(rng.normal(size=(8, 2)).astype(np.float32))
        cache, hidden = rag.read(model, params, tokens, mask)
        mixed = rag.write_token(model, params, cache, hidden, scores, **settings)
        found = rag.propose(model, params, cache, hidden, scores, **settings)
        logprobs = rag.score(model, params, cache, hidden, found.tokens, found.lengths, chunk=2)
        results += [mixed, found, rag.mix(scores, logprobs)]
    assert compile_seconds() == compiled
    return results


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_a_pass(mesh):
    """Route, write or read, answer: SR-RAG's programs, on all rows and on some of them again."""
    wanted, found = off_mesh(run_pass), run_pass(mesh)
    assert_close(found, wanted, tolerance=1e-4)


def run_pass(mesh=None):
    model, params = make_model(mesh)
    stops = {"stop_ids": (3,), "max_tokens": 4}
    results = []
    for seed in range(2):
        compiled = compile_seconds()
        tokens, mask = shard_batch(
            pad_rows(make_rows(range(2, 10), seed=seed), 12, pad_id=0, batch=8)
        )
        routed = steps.route(model, params, tokens, mask, source_ids=(5, 6), layer=1)
        routed = steps.join_rows([routed, routed])
        active = shard_batch(np.arange(8) < 5)
        cache = steps.pick_rows(routed.cache, np.asarray([3, 1, 9, 14, 0, 3, 3, 3], np.int32))
        cache, *written = steps.verbalise(
            model, params, cache, jnp.tile(jnp.array([5, 6]), 4), active, active, **stops
        )
        answered = steps.answer(model, params, cache, active, cue=(7, 8), **stops)
        cache = steps.read(
            model, params, routed.cache, *(jnp.tile(x, (2, 1)) for x in (tokens, mask))
        )
        cache = steps.pick_rows(cache, np.arange(8, dtype=np.int32))
        scores = steps.score_answer(model, params, cache, tokens, mask, cue_length=2)
        results += [routed.probabilities, routed.key, written, answered, scores]
    assert compile_seconds() == compiled
    return results
