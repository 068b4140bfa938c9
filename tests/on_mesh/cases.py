"""On meshes of eight simulated devices everything is as on one; run by tests/runtime.

The systems' cases are in `system_cases.py`.
"""

import re
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from on_mesh.common import (
    ADAPTED,
    FIT_STEPS,
    GREEDY,
    SAMPLED,
    assert_close,
    fit_rows,
    make_bank,
    make_model,
    no_bar,
    off_mesh,
    write,
)
from tiny import make_decoder, make_rows
from tiny_encoders import load_short_bert, write_colbert, write_reranker, write_splade

from rag_jax import lora
from rag_jax.config import ContrastiveConfig, MeshConfig, TuningConfig
from rag_jax.decoding import BeamConfig, Trie, generate, trie_search
from rag_jax.decoding.cache import grow, init_cache
from rag_jax.decoding.cache import write as write_chunk
from rag_jax.losses import token_logprobs
from rag_jax.models import load, load_multi_vector, load_reranker, load_sparse
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.pooling import MEAN
from rag_jax.planning.collectives import count_collectives
from rag_jax.planning.hlo import read_module
from rag_jax.retrieval import (
    Index,
    TokenIndex,
    encode_sparse,
    encode_texts,
    encode_tokens,
    score_pairs,
)
from rag_jax.retrieval.chunks import embed_in_chunks
from rag_jax.retrieval.contrastive import Encoders, PairBatches, fit_encoders, make_loss
from rag_jax.retrieval.exact import find_top
from rag_jax.retrieval.pairs import Pair
from rag_jax.runtime.checkpoint import save_tree
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    abstract_params,
    count_data_rows,
    keep_over_data,
    make_mesh,
    shard_batch,
    shard_params,
    shardings_of,
)
from rag_jax.search_config import YesNo
from rag_jax.training.bank import init_bank_state, make_bank_step
from rag_jax.training.loop import compute_gradients, init_state, make_optimizer, make_step
from rag_jax.training.trainable import make_trainable

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded", "gemma3", "bert"])
def test_load(mesh, name):
    wanted, found = load(GOLDEN / name), load(GOLDEN / name, mesh=mesh)
    rules = BERT_RULES if isinstance(found.model, Bert) else DECODER_RULES
    assert shardings_of(found.params) == shardings_of(abstract_params(wanted.params, mesh, rules))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    half = load(GOLDEN / name, mesh=mesh, dtype="bfloat16").params
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_weights_that_stay_where_they_are(mesh, mode, tmp_path):
    """Split over `model` alone: a decoded token collects none, and what is written is the same."""
    model, params = make_model(None)
    kept = shard_params(params, mesh, keep_over_data(DECODER_RULES))
    assert not any("data" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(kept))
    settings = {"rules": DECODER_RULES, "mesh": mesh, "seed": 0, "dtype": jnp.float32}
    trainable = make_trainable(TuningConfig(mode=mode, rank=2), kept, **settings)
    if mode == "full":
        assert any("data" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(trainable.start()))
    save_tree(tmp_path / "params", trainable.start())
    merged = trainable.load_merged(tmp_path / "params")
    if mode == "full":
        assert shardings_of(merged) == shardings_of(kept)
    else:
        kernel = merged["layers_0"]["ffn"]["up"]["kernel"].array
        assert kernel is kept["layers_0"]["ffn"]["up"]["kernel"]
    prompts = make_rows([3, 5, 6, 4, 8, 7, 3, 2])
    sizes = {"max_tokens": 6, "stop_ids": (2,), "batch_size": 8}
    wanted = off_mesh(generate, model, params, prompts, **sizes)
    assert generate(model, merged, prompts, **sizes) == wanted

    def count_gathers(params):
        cache = grow(init_cache(model, rows=8), 4)
        inputs = shard_batch((np.zeros((8, 1), np.int32), np.ones((8, 1), bool)))
        step = jax.jit(partial(write_chunk, model, slot=0))
        text = step.lower(params, cache, *inputs).compile().as_text()
        return count_collectives(read_module(text), 8)[1].get("all-gather", 0)

    split = shard_params(params, mesh, DECODER_RULES)
    # The keys and values of the cache are all that is left to collect.
    assert count_gathers(kept) < count_gathers(split) / 2


# Training.


@pytest.mark.parametrize(("mesh", "mode"), [((1, 8), "full"), ((4, 2), "lora")], indirect=["mesh"])
def test_fit(mesh, mode, tmp_path):
    wanted_log, wanted = off_mesh(fit_alone, mode=mode)
    log, trained = fit_rows(tmp_path, mesh, mode=mode)
    assert [line["step"] for line in log] == list(range(FIT_STEPS))
    assert_close(log, wanted_log)
    assert_close(trained, wanted, tolerance=1e-3)  # Adam magnifies rounding


def fit_alone(*, mode):
    with tempfile.TemporaryDirectory() as folder:
        return fit_rows(Path(folder), mode=mode)


def test_fit_continues_with_other_devices(tmp_path):
    def run(name, devices, stop):
        mesh = make_mesh(MeshConfig(devices, 1), devices=jax.devices()[:devices])
        with jax.set_mesh(mesh):
            return fit_rows(tmp_path / name, mesh, stop=stop)

    wanted_log, wanted = off_mesh(fit_alone, mode="lora")
    for devices, stop in ((1, 2), (4, 4)):
        with pytest.raises(KeyboardInterrupt):
            run("changing", devices, stop)
    log, trained = run("changing", 2, None)
    assert [line["step"] for line in log] == list(range(FIT_STEPS))
    assert_close(log, wanted_log)
    assert_close(trained, wanted, tolerance=1e-3)


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)], indirect=True)
def test_splash_attention(mesh, monkeypatch):
    """Packed rows, in Pallas' interpreter; `model` divides the two key heads or does not."""
    choose = lambda rows, *sizes: "splash" if rows == 4 else "xla"  # noqa: E731
    monkeypatch.setattr("rag_jax.models.nn.decoder.choose_kernel", choose)
    with jax.numpy_rank_promotion("allow"):  # Pallas' own code promotes
        assert_close(read_packed(mesh), off_mesh(read_packed))


def differentiate_chunks(mesh=None):
    """Gradients of a decoder that embeds eight texts, four together."""
    model, params = make_decoder(num_layers=1)
    params = params if mesh is None else shard_params(params, mesh, DECODER_RULES)
    model = model.clone(pooling=MEAN)
    tokens = np.asarray(make_rows([24] * 8), np.int32)
    lengths = np.asarray([24, 9, 17, 3, 24, 12, 5, 8], np.int32)

    def loss(params, tokens, lengths):
        options = {"rows": 4, "widths": (16, 24)}
        return (embed_in_chunks(model, params, tokens, lengths, **options) ** 3).sum()

    return jax.jit(jax.grad(loss))(params, *shard_batch((tokens, lengths)))


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_chunks_that_a_kernel_reads(mesh, monkeypatch):
    """Every device differentiates its own rows, with heads that `model` divides."""
    wanted = off_mesh(differentiate_chunks)
    choose = lambda rows, width, *sizes: "splash" if width > 1 else "xla"  # noqa: E731
    monkeypatch.setattr("rag_jax.models.nn.decoder.choose_kernel", choose)
    with jax.numpy_rank_promotion("allow"):  # Pallas' own code promotes
        assert_close(differentiate_chunks(mesh), wanted)


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_scanned_layers(mesh):
    """Outputs and gradients, whatever the split of the stacked weights."""
    found = read_packed(mesh, num_layers=3, scan_layers=True)
    assert_close(found, off_mesh(read_packed, num_layers=3))


@pytest.mark.parametrize("mesh", [(4, 2), (1, 8)], indirect=True)
def test_windows(mesh):
    """Packed rows by blocks, and prompts that outgrow the window."""
    kinds = {"num_layers": 2, "window": 3, "sliding_layers": (0,), "unrotated_layers": (1,)}
    found = read_packed(mesh, **kinds, scan_layers=True)
    assert_close(found, off_mesh(read_packed, **kinds))
    assert write(mesh, **GREEDY, **kinds) == off_mesh(write, **GREEDY, **kinds)


def read_packed(mesh=None, scan_layers=False, num_layers=1, **changes):
    """Hidden states of two texts a row, and gradients."""
    model, params = make_decoder(num_layers=num_layers, **changes)
    model = model.clone(scan_layers=scan_layers)
    params = params if mesh is None else shard_params(params, mesh, DECODER_RULES)
    tokens = np.asarray(make_rows([24] * 4), np.int32)
    segments = np.where(np.arange(24) < np.arange(4, 20, 4)[:, None], 1, 2)
    positions = np.tile(np.arange(24, dtype=np.int32), (4, 1))

    def loss(params, tokens, **texts):
        hidden = model.apply({"params": params}, tokens, **texts, method="hidden").hidden
        return (hidden**2).mean(), hidden

    arrays = shard_batch({"tokens": tokens, "segments": segments, "positions": positions})
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, **arrays)


@pytest.mark.parametrize("mesh", [(8, 1)], indirect=True)
def test_barts_logits_stay_with_their_rows(mesh):
    """The compiler would sum the tied table's parts over the logits of all devices' rows."""
    model = Bart(BartConfig(509, 16, 1, 1, 2, 2, 16, 16, max_length=16))
    rows = shard_batch({"tokens": np.ones((16, 8), np.int32)})
    params = model.init(jax.random.key(0), *2 * (rows["tokens"],))["params"]
    params = shard_params(params, mesh, BART_RULES)

    def loss(params, tokens):
        return -token_logprobs(model.apply({"params": params}, tokens, tokens), tokens).mean()

    compiled = jax.jit(jax.grad(loss)).lower(params, **rows).compile().as_text()
    counts = {int(count) for count in re.findall(r"f32\[(\d+),509\]", compiled)}
    assert 16 in counts  # two rows of eight tokens
    assert max(counts) < 16 * 8


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


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2)], indirect=True)
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
    # Passages of two widths and questions of one.
    longest = [8] * 30 + [15] * 62
    tokens = [rng.integers(5, 90, rng.integers(2, most)).tolist() for most in longest]
    pairs = [Pair(str(i), i, 2 * i, (2 * i + 1,), frozenset({2 * i})) for i in range(30)]
    return PairBatches(pairs, tokens[:30], dict(enumerate(tokens[30:])), RETRIEVER, seed=0)


def take_batch(batches, step):
    return batches.pack(step, batches.plan.examples_at(step))


def contrast(mesh=None, *, shared):
    """The first gradients of a retriever, and its losses in two steps, read in chunks."""
    bert, batches = load_short_bert(mesh), make_pairs()
    encoders = Encoders(bert, bert, shared=shared)
    loss, optimizer = make_loss(encoders, RETRIEVER, batches.widths), make_optimizer(RETRIEVER, 2)
    parts = [[("pairs", shard_batch(take_batch(batches, number)))] for number in range(2)]
    start, logs = encoders.params(), []
    shardings = shardings_of(start)
    grads, _ = compute_gradients(loss, start, None, parts[0][0][1], shardings=shardings)
    assert shardings_of(grads) == shardings
    step, state = make_step({"pairs": loss}, optimizer), init_state(start, optimizer)
    for number in range(2):
        state, metrics = step(state, None, parts[number])
        logs.append(jax.device_get(metrics))
    return grads, logs


@pytest.mark.parametrize(("mesh", "shared"), [((8, 1), True), ((4, 2), False)], indirect=["mesh"])
def test_negatives_of_the_whole_batch(mesh, shared):
    """Every question sees the passages of all devices, and chunks lie over all of them."""
    assert_close(contrast(mesh, shared=shared), off_mesh(contrast, shared=shared))


def fit_retriever(folder, mesh=None, *, shared):
    """The losses of a retriever that the driver trains, and its question encoder."""
    folder.mkdir()
    bert, trained = load_short_bert(mesh), []
    encoders = Encoders(bert, bert, shared=shared)
    mesh = mesh or make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1])
    fit_encoders(encoders, make_pairs(), mesh, folder, no_bar, save=trained.append)
    log = read_jsonl(folder / "log.jsonl")
    return [line["loss"] for line in log], trained[0].question.params


@pytest.mark.parametrize(("mesh", "shared"), [((4, 2), False)], indirect=["mesh"])
def test_encoders_are_fitted(mesh, shared, tmp_path):
    losses, encoder = fit_retriever(tmp_path / "many", mesh, shared=shared)
    wanted_losses, wanted = off_mesh(fit_retriever, tmp_path / "one", shared=shared)
    assert len(losses) == 2
    assert_close(losses, wanted_losses)
    assert_close(encoder, wanted, tolerance=1e-4)


# Decoding.


@pytest.mark.parametrize(
    ("mesh", "settings"),
    [((1, 8), GREEDY), ((4, 2), GREEDY), ((4, 2), SAMPLED), ((4, 2), ADAPTED)],
    indirect=["mesh"],
)
def test_generation(mesh, settings):
    assert write(mesh, **settings) == off_mesh(write, **settings)


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
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
            settings = {"config": BeamConfig(3), "greedy": greedy, "batch_size": 8}
            found.append(trie_search(model, params, prompts, trie, **settings))
    assert compile_seconds() == compiled
    return found


@pytest.mark.parametrize("mesh", [(8, 1), (4, 2)], indirect=True)
def test_a_batch_that_does_not_divide(mesh):
    model, params = make_decoder()
    rows = count_data_rows()
    with pytest.raises(RagJaxError, match=f"batch_size=9: must be a multiple of the mesh's {rows}"):
        generate(model, params, [[1]], max_tokens=1, stop_ids=(), batch_size=9)
    with pytest.raises(RagJaxError, match="rows of a batch=9 does not fit the mesh"):
        shard_batch(np.zeros((9, 2)))


# Retrieval.


def encode_alone(*, texts):
    return encode_texts(load(GOLDEN / "bert"), texts, max_length=24)


def test_encoding(mesh):
    texts = ["One.", "A longer text of some words.", ("A title", "and what stands below it")] * 7
    for count in (1, len(texts)):
        wanted = off_mesh(encode_alone, texts=tuple(texts[:count]))
        found = encode_texts(load(GOLDEN / "bert", mesh=mesh), texts[:count], max_length=24)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_encoding_of_words_and_tokens(mesh, tmp_path):
    texts = [" ".join(["word", "cat", "the"][: 1 + i % 3]) for i in range(9)]
    splade = write_splade(tmp_path / "splade")
    colbert = write_colbert(tmp_path / "colbert", expansion={"strategy": "fixed", "length": 8})

    def encode(mesh=None):
        weights = encode_sparse(load_sparse(splade, mesh=mesh), texts, max_length=16)
        encoder = load_multi_vector(colbert, mesh=mesh)
        tokens = [encode_tokens(encoder, texts, role=role) for role in ("query", "document")]
        found = TokenIndex.build(tokens[1], encoder="e").search(tokens[0], 9)
        return weights.toarray(), *(own.vectors for own in tokens), np.asarray(found[0])

    for own, wanted in zip(encode(mesh), off_mesh(encode), strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-5)


@pytest.mark.parametrize("mesh", [(4, 2)], indirect=True)
def test_reranking(mesh, tmp_path):
    asked = YesNo("", " ", "", yes="a", no="b")
    models = (write_reranker(tmp_path / "bert"), None), (GOLDEN / "llama_tied", asked)
    pairs = [("who", " ".join(["word", "cat", "the"][: 1 + i % 3])) for i in range(9)]

    def score(mesh=None):
        opened = (load_reranker(name, question=question, mesh=mesh) for name, question in models)
        return [score_pairs(reranker, pairs) for reranker in opened]

    for own, wanted in zip(score(mesh), off_mesh(score), strict=True):
        np.testing.assert_allclose(own, wanted, atol=2e-5)


@pytest.mark.parametrize("size", [3, 61, 64])
def test_exact_search(mesh, size):
    """In its own call, within another program, and after a way through the disk."""
    rng = np.random.default_rng(size)
    vectors, queries = rng.normal(size=(size, 6)), rng.normal(size=(9, 6)).astype(np.float32)
    vectors[size // 2 :: 3] = vectors[0]  # equal scores in several shards
    index = Index.build(vectors, backend="exact", encoder="e")
    assert len(index.searcher.sharding.device_set) == 8
    assert index.searcher.sharding.shard_shape(index.searcher.shape) == (1, 6, -(-size // 8))
    for k in {1, 3, min(17, size), size}:
        scores = queries @ np.float32(vectors).T
        wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(index.search(queries, k)[1], wanted)
        within = jax.jit(lambda shards, q, k=k: find_top(shards, 2 * q, k=k, size=size))
        np.testing.assert_array_equal(within(index.searcher, queries), wanted)
    before = compile_seconds()
    index.search(-queries, k)
    assert compile_seconds() == before


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_exact_search_of_fewer_bytes(mesh, storage):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(61, 6)), rng.normal(size=(9, 6)).astype(np.float32)
    index = Index.build(vectors, backend="exact", encoder="e", storage=storage)
    shards = index.searcher if storage == "int8" else [index.searcher]
    assert {len(array.sharding.device_set) for array in shards} == {8}
    scores = np.sort(-queries @ index.embeddings.T, axis=1)
    for k in (1, 17):
        np.testing.assert_allclose(index.search(queries, k)[0], -scores[:, :k], rtol=1e-5)


def test_a_saved_index_is_split_anew(mesh, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(21, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with jax.set_mesh(make_mesh(MeshConfig(2, 4))):
        Index.build(vectors, backend="exact", encoder="e").save(tmp_path / "index")
    index = Index.load(tmp_path / "index", encoder="e")
    assert index.searcher.sharding.mesh == mesh
    np.testing.assert_array_equal(index.search(vectors, 1)[1][:, 0], np.arange(21))
