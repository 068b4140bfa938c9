"""The marginal loss of both kinds of generator against full passes, one row at a time."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import pack_questions

from rag_jax.losses import mix_documents, rag_sequence_nll, rag_token_nll
from rag_jax.models import load
from rag_jax.retrieval import encode_texts
from rag_jax.retrieval.texts import tokenize_texts
from rag_jax.systems.rag.data import (
    make_examples,
    make_format,
    pack_examples,
    pack_queries,
)
from rag_jax.systems.rag.loss import marginal_nll, rag_loss, score_passages

GOLDEN = Path(__file__).parents[2] / "golden"
GENERATORS = {name: load(GOLDEN / name) for name in ("bart", "llama_tied")}
QUERY = {name: load(GOLDEN / name) for name in ("dpr_question", "bert")}
QUESTIONS = ["Where is it?", "What?"]
PASSAGES = [[("a", "b c d"), ("Paris", "It is"), ("x", "y")], [("c", "d"), ("e", "f"), ("g", "h")]]
SCORES = np.asarray([[0.5, -1.0, 2.0], [1.0, 0.0, 0.3]], np.float32)


def make_batch(generator, sequences=((0,), (1,)), *, items=1, answer=10, batch=None):
    width = min(generator.config.max_length, 40)
    format = make_format(generator, max_length=width)
    examples = make_examples(format, QUESTIONS, PASSAGES, ["it", "a city"])
    arrays = pack_examples(
        [[examples[i] for i in sequence] for sequence in sequences],
        start_ids=getattr(generator.config, "start_ids", ()),
        width=3 * items * (width + answer),
        written=3 * items * (answer + 2),
        items=items,
        answer=answer,
        batch=batch or len(sequences),
        scale=0.5,
    )
    return examples, arrays


@partial(jax.jit, static_argnums=0)
def read_whole(model, params, *tokens):
    return jax.nn.log_softmax(model.apply({"params": params}, *tokens), axis=-1)


def row_logprobs(generator, source, target):
    """Log-probabilities of a target's tokens after one input, in a full pass by themselves."""
    given = generator.model, generator.params
    if hasattr(generator.config, "start_ids"):
        start = generator.config.start_ids
        decoder = np.asarray([[*start, *target[:-1]]])
        return np.asarray(read_whole(*given, np.asarray([source]), decoder))[0, len(start) - 1 :]
    row = np.asarray([[*source, *target[:-1]]])
    return np.asarray(read_whole(*given, row))[0, len(source) - 1 :]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", GENERATORS)
def test_marginals_are_those_of_rows_by_themselves(name, packed):
    generator = GENERATORS[name]
    options = {"sequences": ((0, 1),), "items": 3} if packed else {"batch": 3}
    examples, batch = make_batch(generator, answer=12, **options)
    scores = np.concatenate([SCORES, np.zeros((1, 3), np.float32)])
    tables = [
        np.asarray([row_logprobs(generator, tokens, example.target) for tokens in example.inputs])
        for example in examples
    ]
    for marginal, smoothing in (("sequence", 0.0), ("token", 0.0), ("token", 0.1)):
        loss = jax.jit(partial(rag_loss, generator.model, marginal=marginal, smoothing=smoothing))
        total, metrics = loss(generator.params, scores, batch)
        wanted = plain = 0
        for b, example in enumerate(examples):
            prior = SCORES[b] - np.logaddexp.reduce(SCORES[b])
            place = np.arange(len(example.target))
            if marginal == "sequence":
                joint = prior + tables[b][:, place, example.target].sum(axis=1)
                wanted -= np.logaddexp.reduce(joint)
                plain -= np.logaddexp.reduce(joint)
            else:
                mixed = np.logaddexp.reduce(prior[:, None, None] + tables[b], axis=0)
                wanted -= (1 - smoothing) * mixed[place, example.target].sum()
                plain -= mixed[place, example.target].sum()
                wanted -= smoothing * mixed.mean(axis=-1).sum()
        np.testing.assert_allclose(total, 0.5 * wanted, rtol=2e-5)
        prior = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(metrics["nll"], 0.5 * plain, rtol=2e-5)
        np.testing.assert_allclose(
            metrics["doc_entropy"], -0.5 * (prior * np.log(prior)).sum(), rtol=1e-5
        )


@pytest.mark.parametrize(
    ("marginal", "smoothing"), [("sequence", 0.0), ("sequence", 0.1), ("token", 0.1)]
)
def test_chunks_of_an_answers_tokens_change_nothing(marginal, smoothing, monkeypatch):
    """The loss, and its gradients by the model and by the documents' scores."""
    generator = GENERATORS["llama_tied"]
    _, batch = make_batch(generator, ((0, 1),), items=2)

    def run():
        def loss(params, scores, batch):
            settings = {"marginal": marginal, "smoothing": smoothing}
            return rag_loss(generator.model, params, scores, batch, **settings)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(generator.params, SCORES, batch)

    wanted = run()
    monkeypatch.setattr("rag_jax.losses._LOGIT_BYTES", 4 * 6 * 4 * generator.config.vocab_size)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), run(), wanted)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_an_encoder_decoder_in_a_loop_has_the_gradients_of_a_list(remat):
    generator = GENERATORS["bart"]
    _, batch = make_batch(generator, ((0, 1),), items=2)

    def differentiate(**passes):
        model = generator.model.clone(**passes)

        def loss(params, scores, batch):
            return rag_loss(model, params, scores, batch, marginal="token")[0]

        return jax.jit(jax.value_and_grad(loss))(generator.params, SCORES, batch)

    assert generator.config.encoder_layers > 1 and generator.config.decoder_layers > 1
    wanted, found = differentiate(), differentiate(remat=remat, scan_layers=True)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, wanted)


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_are_apart_and_padding_changes_nothing(name):
    generator = GENERATORS[name]
    nll = jax.jit(partial(marginal_nll, generator.model, marginal="sequence"))
    _, both = make_batch(generator, ((0, 1),), items=2)
    together, _ = nll(generator.params, SCORES, both)
    _, alone = make_batch(generator, ((1,),), answer=14)
    found, _ = nll(generator.params, SCORES[1:], alone)
    np.testing.assert_allclose(found, together[1:], rtol=2e-5)


def test_gradients_of_padding_are_finite():
    generator = GENERATORS["bart"]
    batch = make_batch(generator, ((0,),), items=2, batch=2)[1]
    scores = jnp.zeros((4, 3))

    def loss(params, batch):
        return rag_loss(generator.model, params, scores, batch, marginal="token")[0]

    grads = jax.jit(jax.grad(loss))(generator.params, batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(("name", "scale"), [("dpr_question", 1.0), ("bert", 20.0)])
def test_scores_are_products_and_the_gradient_goes_through_them_alone(name, scale):
    encoder, generator = QUERY[name], GENERATORS["bart"]
    questions = ["Where is Paris?", "What is the capital of France?"]
    size = encoder.model.embedding_size
    passages = np.random.default_rng(0).normal(size=(2, 3, size)).astype(np.float32)
    queries = tokenize_texts(encoder, questions, 24)
    _, batch = make_batch(generator)
    batch |= pack_queries(queries, passages, [0, 1], width=24)

    def loss(params, batch):
        scores = score_passages(encoder.model, params["encoder"], batch, scale=scale)
        return rag_loss(generator.model, params["generator"], scores, batch, marginal="token")[0]

    score = jax.jit(partial(score_passages, encoder.model, scale=scale))
    found = score(encoder.params, batch)
    wanted = np.einsum("be,bke->bk", encode_texts(encoder, questions, max_length=24), passages)
    np.testing.assert_allclose(found, scale * wanted, rtol=1e-4, atol=1e-4)
    params = {"encoder": encoder.params, "generator": generator.params}
    grads = jax.jit(jax.grad(loss))(params, batch)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads["encoder"])) > 1e-4
    # With equal passages the scores say nothing, whatever the question: no gradient is left.
    equal = batch | {"passages": np.repeat(passages[:, :1], 3, axis=1)}
    grads = jax.jit(jax.grad(loss))(params, equal)
    left = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads["encoder"]))
    assert left < 2e-5  # scores of some hundred are equal but for rounding


def test_golden():
    """What transformers computes, with a model that forces no BOS (tests/golden/make.py)."""
    golden = dict(np.load(GOLDEN / "rag" / "golden.npz"))
    generator = GENERATORS["bart"]
    targets = golden["labels"][:, 2:]
    inputs = golden["tokens"], golden["mask"].astype(bool), targets, targets != 1
    batch = pack_questions(*inputs, start_ids=generator.config.start_ids)
    loss = jax.jit(partial(marginal_nll, generator.model, marginal="sequence"))
    found, plain = loss(generator.params, golden["scores"], batch)
    np.testing.assert_allclose(found, golden["sequence_without_bos"], rtol=1e-5)
    np.testing.assert_allclose(plain, found)
    logits = golden["logits"]
    targets = np.concatenate(
        [golden["labels"][:, 1:], np.ones_like(golden["labels"][:, :1])], axis=1
    )
    mask = jnp.asarray(targets != 1)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    logprobs = logprobs.reshape(len(targets), -1, *logprobs.shape[1:])
    every = jnp.broadcast_to(targets[:, None, :, None], (*logprobs.shape[:3], 1))
    chosen = jnp.take_along_axis(logprobs, every, axis=-1)[..., 0]
    scores, size = jnp.asarray(golden["scores"]), logits.shape[-1]
    sums = {
        "sequence": lambda scores: logprobs.sum(-1),
        "token": lambda scores: mix_documents(scores, logprobs).sum(-1),
    }
    for loss, name in ((rag_sequence_nll, "sequence"), (rag_token_nll, "token")):
        for smoothing in (0.0, 0.1):

            def smoothed(scores, loss=loss, name=name, smoothing=smoothing):
                given = {"smoothing": smoothing, "vocab_size": size}
                return loss(scores, chosen, mask, vocab_sums=sums[name](scores), **given)

            found, pull = jax.vjp(smoothed, scores)
            key = f"{name}_{smoothing}"
            np.testing.assert_allclose(found, golden[key], rtol=1e-5, atol=1e-5)
            gradient = pull(jnp.ones_like(found))[0]
            np.testing.assert_allclose(gradient, golden[f"{key}_gradient"], rtol=1e-4, atol=1e-5)
