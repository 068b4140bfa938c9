"""On meshes of eight simulated devices everything is as on one; run by tests/test_sharding.py."""

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_decoder, make_rows

from rag_jax import lora
from rag_jax.config import ContrastiveConfig, MeshConfig
from rag_jax.data.batches import pad_rows
from rag_jax.decoding import BeamConfig, Sampling, Trie, generate, trie_search
from rag_jax.losses import token_logprobs
from rag_jax.models import load
from rag_jax.models.nn.bert import Bert
from rag_jax.retrieval import Index, encode_texts
from rag_jax.retrieval.contrastive import Encoders, Pair, PairBatches, make_loss
from rag_jax.retrieval.searchers import find_top
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import (
    BERT_RULES,
    DECODER_RULES,
    abstract_params,
    count_data_rows,
    make_mesh,
    shard_batch,
    shard_params,
    shardings_of,
)
from rag_jax.systems.rag import infer as rag
from rag_jax.systems.srrag import steps, tune
from rag_jax.systems.srrag.config import NewTokensConfig, SRRAGConfig
from rag_jax.systems.srrag.data import TERMS
from rag_jax.training import loop
from rag_jax.training.bank import init_bank_state, make_bank_step
from rag_jax.training.loop import compute_gradients, init_state, make_optimizer, make_step
from rag_jax.training.rows import Row, pack_rows

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = [(8, 1), (4, 2), (1, 8)]


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
    assert shardings_of(found.params) == shardings_of(abstract_params(wanted.params, mesh, rules))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    half = load(GOLDEN / name, mesh=mesh, dtype="bfloat16").params
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


# Training.


def make_model(mesh, **changes):
    """The tiny decoder, on one device where `mesh` is None."""
    model, params = make_decoder(num_layers=1, **changes)
    return model, params if mesh is None else shard_params(params, mesh, DECODER_RULES)


def make_session(mesh, mode):
    """SR-RAG's training on it."""
    model, params = make_model(mesh, vocab_size=36, tie_embeddings=True)
    # The last four tokens are the new ones.
    ids = {"<EOQ>": 32, "<EOK>": 33, "<Self>": 34, "<Wiki>": 35}
    tokenizer = SimpleNamespace(token_id=ids.__getitem__)
    return SimpleNamespace(
        config=SRRAGConfig(tuning=NewTokensConfig(mode=mode, rank=2)),
        base=SimpleNamespace(model=model, params=params, tokenizer=tokenizer),
        mesh=mesh or make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]),
        new_ids=list(ids.values()),
    )


def make_parts(seed):
    """One microbatch of rows and one of pairs."""
    lengths = np.random.default_rng(seed).integers(9, 17, 24)
    rows = [
        Row(str(i), tokens, {"source": (4, 5), "verbalisation": (5, 7), "answer": (7, 9)})
        for i, tokens in enumerate(make_rows(lengths, seed=seed))
    ]
    settings = {"width": 16, "targets": 16, "batch": 8, "scale": 1 / 16, "reduction": "mean"}
    settings["terms"] = TERMS
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
    places = shardings_of(start)
    grads = [
        compute_gradients(losses[name], start, frozen, arrays, places=places)[0]
        for name, arrays in parts[0]
    ]
    assert all(shardings_of(part) == places for part in grads)
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
    ("mesh", "mode"), [*((sizes, "full") for sizes in SIZES), ((4, 2), "lora")], indirect=["mesh"]
)
def test_training(mesh, mode):
    wanted, found = off_mesh(train, mode), train(mode, mesh)
    assert_close(found[:2], wanted[:2])
    # Adam divides by the gradient's size: where that is near zero, its rounding shows.
    assert_close(found[2], wanted[2], tolerance=1e-3)


def go_on(folder, devices, stop):
    """Trains from the newest checkpoint until step `stop`, where the run dies."""
    mesh = make_mesh(MeshConfig(devices, 1), devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        session = make_session(mesh, "lora")
        optimizer = make_optimizer(session.config.stage1, 6)
        step = make_step(tune.make_losses(session), optimizer)

        def batch_at(number):
            if number == stop:
                raise KeyboardInterrupt
            return [(name, shard_batch(x)) for name, x in make_parts(number)], [str(number)]

        return loop.train(
            init_state(tune.start_trainable(session), optimizer),
            lambda state, parts: step(state, session.base.params, parts),
            batch_at,
            total_steps=6,
            checkpoints=Checkpoints(folder / "checkpoints"),
            checkpoint_every=2,
            progress=lambda *_, **__: contextlib.nullcontext(SimpleNamespace(update=lambda _: 0)),
            log_path=folder / "log.jsonl",
            flops_at=lambda number: 0.0,
        )


def test_a_run_goes_on_with_other_devices(tmp_path):
    for name in ("one", "changing"):
        (tmp_path / name).mkdir()
    wanted = go_on(tmp_path / "one", 1, None)
    for devices, stop in ((1, 2), (4, 4)):
        with pytest.raises(KeyboardInterrupt):
            go_on(tmp_path / "changing", devices, stop)
    found = go_on(tmp_path / "changing", 2, None)
    logs = [read_jsonl(tmp_path / name / "log.jsonl") for name in ("changing", "one")]
    assert [line["step"] for line in logs[0]] == list(range(6))
    assert_close(*logs)
    assert_close(found.params, wanted.params, tolerance=1e-3)  # as in `test_training`


def make_bank(params, size):
    """Adapters on every kernel, none like another."""
    draw = partial(lora.init_bank, jax.random.key(0), targets=".*/kernel", rank=2, size=size)
    bank = jax.eval_shape(draw, params)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype("f"), bank)


def train_bank(mesh=None, steps=3):
    """Losses and adapters of eight documents after some steps."""
    model, params = make_model(mesh)
    optimizer = optax.adamw(0.01)

    def loss(adapter, base, tokens):
        logits = model.apply({"params": lora.apply(base, adapter, scale=2.0)}, tokens)
        return -token_logprobs(logits[:, :-1], tokens[:, 1:]).mean(), {}

    step = make_bank_step(loss, optimizer)
    state = init_bank_state(shard_batch(make_bank(make_model(None)[1], 8)), optimizer)
    before, losses = shardings_of(state), []
    for number in range(steps):
        tokens = np.asarray(make_rows([9] * 8, seed=number), np.int32)[:, None]
        state, metrics = step(state, params, shard_batch(tokens))
        losses.append(jax.device_get(metrics["loss"]))
        compiled = compile_seconds() if number == 0 else compiled
    assert shardings_of(state) == before
    assert compile_seconds() == compiled
    return losses, state.params


def test_a_bank_is_split_by_documents(mesh):
    losses, bank = train_bank(mesh)
    wanted_losses, wanted = off_mesh(train_bank)
    assert_close(losses, wanted_losses)
    assert_close(bank, wanted, tolerance=2e-4)  # Adam's first steps magnify rounding
    if mesh.shape["data"] > 1:
        assert not any(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(bank))


RETRIEVER = ContrastiveConfig(batch_size=16, negatives=1, microbatch_tokens=128)


def make_pairs():
    """Two batches of questions with their passages."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(5, 90, rng.integers(2, 15)).tolist() for _ in range(92)]
    pairs = [Pair(str(i), i, 2 * i, (2 * i + 1,), frozenset({2 * i})) for i in range(30)]
    return PairBatches(pairs, tokens[:30], dict(enumerate(tokens[30:])), RETRIEVER, seed=0)


def load_encoder(mesh):
    """The tiny encoder without its second layer."""
    bert = load(GOLDEN / "bert", mesh=mesh)
    params = {name: part for name, part in bert.params.items() if name != "layers_1"}
    config = replace(bert.config, num_layers=1)
    return replace(bert, config=config, model=Bert(config), params=params)


def contrast(mesh=None, *, shared):
    """The first gradients of a retriever, and its losses in two steps, read in chunks."""
    bert, batches = load_encoder(mesh), make_pairs()
    encoders = Encoders(bert, bert, shared=shared)
    loss, optimizer = make_loss(encoders, RETRIEVER), make_optimizer(RETRIEVER, 2)
    parts = [[("pairs", shard_batch(batches.batch_at(number)[0]))] for number in range(2)]
    start, logs = encoders.params(), []
    places = shardings_of(start)
    grads, _ = compute_gradients(loss, start, None, parts[0][0][1], places=places)
    assert shardings_of(grads) == places
    step, state = make_step({"pairs": loss}, optimizer), init_state(start, optimizer)
    for number in range(2):
        state, metrics = step(state, None, parts[number])
        logs.append(jax.device_get(metrics))
    return grads, logs


@pytest.mark.parametrize(
    ("mesh", "shared"), [((8, 1), True), ((4, 2), False), ((1, 8), True)], indirect=["mesh"]
)
def test_negatives_of_the_whole_batch(mesh, shared):
    """Every question sees the passages of all devices, and chunks lie over all of them."""
    assert_close(contrast(mesh, shared=shared), off_mesh(contrast, shared=shared))


# Decoding.


def write(mesh=None, *, sampling, prefix, adapted=False):
    """Two lots of texts, the second of which compiles nothing."""
    model, params = make_model(mesh)
    adapters = make_bank(make_model(None)[1], 7) if adapted else None
    texts = []
    for seed in range(2):
        prompts = make_rows([3, 9, 4, 5, 12, 2, 7], seed=seed)
        before = compile_seconds()
        texts += generate(
            model,
            params,
            prompts,
            prefix=prefix,
            adapters=adapters,
            max_tokens=7,
            stop_ids=(3,),
            batch_size=16,
            sampling=sampling,
        )
    assert compile_seconds() == before
    return texts


GREEDY = {"sampling": Sampling(), "prefix": (5, 6, 7)}
SAMPLED = {"sampling": Sampling(temperature=0.7, top_k=9), "prefix": ()}
ADAPTED = {"sampling": Sampling(), "prefix": (), "adapted": True}


@pytest.mark.parametrize(
    ("mesh", "settings"),
    [*((sizes, GREEDY) for sizes in SIZES), ((4, 2), SAMPLED), ((4, 2), ADAPTED)],
    indirect=["mesh"],
)
def test_generation(mesh, settings):
    assert write(mesh, **settings) == off_mesh(write, **settings)


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2)], indirect=True)
def test_beams_under_documents(mesh):
    """RAG's decoders: beams over a mixture, beams of every document, scores of all their texts."""
    wanted, found = off_mesh(decode_documents), decode_documents(mesh)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, tolerance=1e-4)


def decode_documents(mesh=None):
    model, params = make_model(mesh)
    rng = np.random.default_rng(0)
    settings = {"max_tokens": 4, "stop_ids": (3,), "search": BeamConfig(2)}
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


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2)], indirect=True)
def test_beams_along_a_trie(mesh):
    assert_close(search_passages(mesh), off_mesh(search_passages), tolerance=1e-4)


def search_passages(mesh=None):
    model, params = make_model(mesh)
    corpus = [[token % 6 for token in row] for row in make_rows(range(1, 31), seed=1)]
    trie, found = Trie.from_sequences(corpus, end_id=6), []
    for seed in range(2):
        compiled = compile_seconds()
        prompts = make_rows([3, 9, 4, 5, 12, 2, 7], seed=seed)
        for greedy in (False, True):
            settings = {"search": BeamConfig(3), "greedy": greedy, "batch_size": 8}
            found.append(trie_search(model, params, prompts, trie, **settings))
    assert compile_seconds() == compiled
    return found


def test_a_batch_that_does_not_divide(mesh):
    model, params = make_decoder()
    rows = count_data_rows()
    if rows == 1:
        return
    with pytest.raises(RagJaxError, match=f"batch_size=9: must be a multiple of the mesh's {rows}"):
        generate(model, params, [[1]], max_tokens=1, stop_ids=(), batch_size=9)
    with pytest.raises(RagJaxError, match="rows of a batch=9 does not fit the mesh"):
        shard_batch(np.zeros((9, 2)))


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)], indirect=True)
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


# Retrieval.


def test_encoding(mesh):
    texts = ["One.", "A longer text of some words.", ("A title", "and what stands below it")] * 7
    for count in (1, len(texts)):
        wanted = encode_texts(load(GOLDEN / "bert"), texts[:count], max_length=24)
        found = encode_texts(load(GOLDEN / "bert", mesh=mesh), texts[:count], max_length=24)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("size", [3, 61, 64])
def test_exact_search(mesh, size):
    """In its own call, within another program, and after a way through the disk."""
    rng = np.random.default_rng(size)
    vectors, queries = rng.normal(size=(size, 6)), rng.normal(size=(9, 6)).astype(np.float32)
    vectors[size // 2 :: 3] = vectors[0]  # equal scores in several shards
    index = Index.build(vectors, backend="exact", encoder="e")
    assert len(index.searcher.sharding.device_set) == 8
    assert index.searcher.sharding.shard_shape(index.searcher.shape)[:2] == (1, -(-size // 8))
    for k in {1, 3, min(17, size), size}:
        scores = queries @ np.float32(vectors).T
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(index.search(queries, k)[1], wanted)
        within = jax.jit(lambda shards, q, k=k: find_top(shards, 2 * q, k=k, size=size))
        np.testing.assert_array_equal(within(index.searcher, queries), wanted)
    before = compile_seconds()
    index.search(-queries, k)
    assert compile_seconds() == before


def test_a_saved_index_is_split_anew(mesh, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(21, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with jax.set_mesh(make_mesh(MeshConfig(2, 4))):
        Index.build(vectors, backend="exact", encoder="e").save(tmp_path / "index")
    index = Index.load(tmp_path / "index", encoder="e")
    assert index.searcher.sharding.mesh == mesh
    np.testing.assert_array_equal(index.search(vectors, 1)[1][:, 0], np.arange(21))
