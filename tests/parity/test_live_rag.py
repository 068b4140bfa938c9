"""RAG with random weights against transformers': losses, gradients, decoded sequences and scores.

pip install -e .[parity] && pytest -m parity tests/parity

Where transformers is known to be at fault the tests say so, and keep out of its way:

- An answer of one token alone loses `p(z|x)` in its RAG-Sequence loss, which is added to the second
  target: `test_an_answer_of_one_token`. Decoding asks for longer ones where no BOS is forced.
- With `exclude_bos_score` its smoothing term still counts the BOS: `test_losses`.
- Its losses take a token that is written like padding for padding. Here none ever is.
- Its RAG-Sequence decoding proposes answers without a mask, so that passages are read with their
  padding, and scores them with one: the fixture gives it the mask. It ranks by the smoothed loss if
  the model was trained with smoothing, tells candidates apart by their padding too, and, where it
  has a retriever, retrieves anew for every candidate, without `n_docs`. Here there is no smoothing,
  and passages are given, for one question at a time.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import pack_questions

from rag_jax.decoding import BeamConfig
from rag_jax.losses import rag_sequence_nll, token_logprobs
from rag_jax.models import load
from rag_jax.models.nn.bart import Bart
from rag_jax.systems.rag import steps
from rag_jax.systems.rag.loss import marginal_nll, target_hidden

pytestmark = pytest.mark.parity

QUESTIONS, DOCS, VOCABULARY = 3, 4, 300
BOS, PAD, EOS = 0, 1, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' two models around one generator, and ours."""
    torch = pytest.importorskip("torch")
    import transformers as their

    torch.manual_seed(0)
    config = their.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
        decoder_ffn_dim=40, encoder_attention_heads=4, decoder_attention_heads=2,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    generator = their.BartForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            scale = "norm" in name and "bias" not in name
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + scale)
        generator.final_logits_bias.normal_()
        generator.final_logits_bias[0, EOS] = 2.0  # beams end at different lengths
        generator.final_logits_bias[0, PAD] = -30.0
    unmasked = generator.generate
    generator.generate = lambda tokens, attention_mask=None, **settings: unmasked(
        tokens, attention_mask=tokens.ne(PAD).long(), **settings
    )
    # Nothing is forced but where a test says so.
    generator.generation_config.forced_eos_token_id = None
    generator.config.forced_eos_token_id = None
    folder = tmp_path_factory.mktemp("bart")
    generator.save_pretrained(folder)
    from pathlib import Path
    from shutil import copy

    for path in (Path(__file__).parents[1] / "golden" / "bart").glob("tokenizer*"):
        copy(path, folder)
    encoder = their.DPRQuestionEncoder(
        their.DPRConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8,
        )
    )  # fmt: skip
    both = their.RagConfig.from_question_encoder_generator_configs(
        encoder.config, config, n_docs=DOCS, bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS,
        decoder_start_token_id=EOS, is_encoder_decoder=True,
    )  # fmt: skip
    kinds = {"sequence": their.RagSequenceForGeneration, "token": their.RagTokenForGeneration}
    theirs = {
        marginal: kind(config=both, question_encoder=encoder, generator=generator).eval()
        for marginal, kind in kinds.items()
    }
    return theirs, load(folder)


def make_inputs(seed=0):
    """Passages of different lengths with their questions, padded, and the documents' scores."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCABULARY, (QUESTIONS * DOCS, 14))
    mask = np.arange(14) < rng.integers(4, 15, QUESTIONS * DOCS)[:, None]
    scores = rng.normal(0, 1, (QUESTIONS, DOCS)).astype(np.float32)
    return np.where(mask, tokens, PAD).astype(np.int32), mask, scores


def make_targets(lengths, seed=1):
    """Answers with a BOS before and an EOS after them."""
    targets = np.random.default_rng(seed).integers(5, VOCABULARY, (QUESTIONS, 7))
    mask = np.arange(7) < np.asarray(lengths)[:, None]
    targets[:, 0] = BOS
    targets[np.arange(QUESTIONS), np.asarray(lengths) - 1] = EOS
    return np.where(mask, targets, PAD).astype(np.int32), mask


def make_batch(model, *arrays):
    return jax.tree.map(jnp.asarray, pack_questions(*arrays, start_ids=model.config.start_ids))


def read_logits(ours, batch):
    """The logits of each target token under each document, `[B, K, T, V]`."""
    hidden = target_hidden(ours.model, ours.params, batch)
    return ours.model.apply({"params": ours.params}, hidden, method="logits")


def ask(model, tokens, mask, scores, **settings):
    import torch

    return model(
        context_input_ids=torch.tensor(tokens, dtype=torch.long),
        context_attention_mask=torch.tensor(mask).long(),
        doc_scores=scores if torch.is_tensor(scores) else torch.tensor(scores),
        n_docs=DOCS,
        **settings,
    )


def compute_loss(model, inputs, labels, *, smoothing, **settings):
    """Their losses and the gradient of their sum by the documents' scores."""
    import torch

    tokens, mask, scores = inputs
    scores = torch.tensor(scores, requires_grad=True)
    model.config.label_smoothing = smoothing
    labels = torch.tensor(labels, dtype=torch.long)
    loss = ask(model, tokens, mask, scores, labels=labels, **settings).loss
    model.config.label_smoothing = 0.0
    loss.sum().backward()
    return loss.detach().numpy(), scores.grad.numpy()


def close(ours, theirs, name):
    gap = np.abs(np.asarray(ours) - theirs).max()
    print(f"{name}: {gap:.1e} of {np.abs(theirs).max():.1f}")
    # Relative, beyond 1: the losses are sums over some tokens, or over the vocabulary.
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
def test_losses(models, marginal, smoothing):
    theirs, ours = models
    tokens, mask, scores = inputs = make_inputs()
    targets, target_mask = make_targets([7, 4, 3])
    start = np.full((QUESTIONS, 1), EOS)
    labels = np.concatenate([start, targets], axis=1)
    batch = make_batch(ours.model, tokens, mask, targets, target_mask)
    target_mask = batch["target_mask"]
    nll = partial(marginal_nll, marginal=marginal, smoothing=smoothing)

    def value_and_grad(function):
        loss, pull = jax.vjp(function, jnp.asarray(scores))
        return loss, pull(jnp.ones_like(loss))[0]

    # The BOS is a target like any other.
    wanted = compute_loss(theirs[marginal], inputs, labels, smoothing=smoothing)
    found = value_and_grad(lambda scores: nll(ours.model, ours.params, scores, batch)[0])
    close(found[0], wanted[0], "loss")
    close(found[1], wanted[1], "gradient")
    if marginal == "token":
        return
    # It is left out: by a mask, ...
    wanted = compute_loss(theirs[marginal], inputs, labels, smoothing=0.0, exclude_bos_score=True)
    logits = read_logits(ours, batch)
    every = jnp.broadcast_to(targets[:, None], logits.shape[:-1])
    logprobs = token_logprobs(logits, every)
    but_bos = target_mask.at[:, 0].set(False)
    found = value_and_grad(lambda scores: rag_sequence_nll(scores, logprobs, but_bos))
    close(found[0], wanted[0], "loss without BOS")
    close(found[1], wanted[1], "gradient without BOS")
    # ... or as what a model that forces it starts with.
    model = Bart(replace(ours.config, forced_bos_id=BOS))
    rest = make_batch(model, tokens, mask, targets[:, 1:], target_mask[:, 1:])
    found = value_and_grad(
        lambda scores: marginal_nll(model, ours.params, scores, rest, marginal=marginal)[0]
    )
    close(found[0], wanted[0], "loss after BOS")
    close(found[1], wanted[1], "gradient after BOS")
    # Their smoothing still has it; with its log-probability 0 in the likelihood alone, so has ours.
    wanted = compute_loss(
        theirs[marginal], inputs, labels, smoothing=smoothing, exclude_bos_score=True
    )
    sums = jax.nn.log_softmax(logits, axis=-1).sum(axis=-1)
    found = value_and_grad(
        lambda scores: rag_sequence_nll(
            scores, logprobs.at[:, :, 0].set(0), target_mask, smoothing=smoothing,
            vocab_sums=sums, vocab_size=VOCABULARY,
        )
    )  # fmt: skip
    close(found[0], wanted[0], "smoothed loss without BOS")
    close(found[1], wanted[1], "smoothed gradient without BOS")


def test_an_answer_of_one_token(models):
    """Theirs has no second target to add `log p(z|x)` to: documents count alike, and K-fold."""
    theirs, ours = models
    tokens, mask, scores = inputs = make_inputs()
    targets = np.full((QUESTIONS, 1), EOS)
    labels = np.concatenate([targets, targets], axis=1)
    real = np.ones((QUESTIONS, 1), bool)
    batch = make_batch(ours.model, tokens, mask, targets, real)
    logprobs = jax.nn.log_softmax(read_logits(ours, batch), axis=-1)
    wanted, _ = compute_loss(theirs["sequence"], inputs, labels, smoothing=0.0)
    close(-jax.nn.logsumexp(logprobs[:, :, 0, EOS], axis=1), wanted, "their loss")
    wanted, gradient = compute_loss(theirs["token"], inputs, labels, smoothing=0.0)
    for marginal in ("sequence", "token"):  # which with one token are the same
        loss = partial(marginal_nll, ours.model, ours.params, batch=batch, marginal=marginal)
        scores = jnp.asarray(scores)
        close(loss(scores)[0], wanted, marginal)
        found = jax.grad(lambda scores, loss=loss: loss(scores)[0].sum())(scores)
        close(found, gradient, "gradient")


# What is forced, the beams, and how they are ranked.
DECODING = [
    (None, None, BeamConfig(1, early_stopping=True, min_tokens=1)),
    (BOS, EOS, BeamConfig(1, early_stopping=True)),
    (None, None, BeamConfig(4, min_tokens=1)),
    (BOS, None, BeamConfig(4, length_penalty=0.0, early_stopping=True)),
    (None, EOS, BeamConfig(3, length_penalty=2.0, early_stopping="never", min_tokens=1)),
    (BOS, EOS, BeamConfig(4, min_tokens=2)),
]
LIMIT = 8  # new tokens, everything that is forced among them


def set_up(models, bos, eos, search):
    """Settings of their `generate`, and our generator with the limit that is the same."""
    _, ours = models
    start = 1 + (bos is not None)
    settings = {
        "num_beams": search.num_beams, "do_sample": False, "max_length": 1 + LIMIT,
        "min_length": start + search.min_tokens, "forced_bos_token_id": bos,
        "forced_eos_token_id": eos, "decoder_start_token_id": EOS, "eos_token_id": EOS,
        "pad_token_id": PAD, "bos_token_id": BOS,
    }  # fmt: skip
    if search.num_beams > 1:
        settings |= {
            "length_penalty": search.length_penalty, "early_stopping": search.early_stopping,
        }  # fmt: skip
    model = Bart(replace(ours.config, forced_bos_id=bos, forced_eos_id=eos))
    limit = LIMIT - (bos is not None) - (eos is not None)
    return settings, model, {"max_tokens": limit, "stop_ids": (EOS,), "config": search}


def strip(row, start):
    """A row of theirs without what it starts with and its padding; the EOS stays."""
    row = row[start:].tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row[: len(row) - row.count(PAD)]


@pytest.mark.parametrize(("bos", "eos", "search"), DECODING)
@pytest.mark.parametrize("seed", range(4))
def test_token_decoding(models, bos, eos, search, seed):
    import torch

    theirs, ours = models
    tokens, mask, scores = make_inputs(seed)
    settings, model, ours_settings = set_up(models, bos, eos, search)
    wanted = theirs["token"].generate(
        context_input_ids=torch.tensor(tokens, dtype=torch.long),
        context_attention_mask=torch.tensor(mask).long(), doc_scores=torch.tensor(scores),
        n_docs=DOCS, num_return_sequences=search.num_beams, return_dict_in_generate=True,
        output_scores=True, **settings,
    )  # fmt: skip
    rows = [strip(row, len(model.config.start_ids)) for row in wanted.sequences.numpy()]
    cache, hidden = steps.read(model, ours.params, tokens, mask)
    found = steps.write_token(model, ours.params, cache, hidden, scores, **ours_settings)
    assert found.exists.all()
    united = steps.unite(found, docs=1)
    texts = [
        united.tokens[b, w, :n].tolist()
        for b in range(QUESTIONS)
        for w, n in enumerate(united.lengths[b])
    ]
    assert texts == rows
    if search.num_beams > 1:
        close(found.scores.reshape(-1), wanted.sequences_scores.numpy(), "scores")


@pytest.mark.parametrize(("bos", "eos", "search"), DECODING)
@pytest.mark.parametrize("seed", range(2))
def test_thorough_decoding(models, bos, eos, search, seed):
    import torch

    theirs, ours = models
    tokens, mask, scores = make_inputs(seed)
    settings, model, ours_settings = set_up(models, bos, eos, search)
    settings.pop("num_beams")
    cache, hidden = steps.read(model, ours.params, tokens, mask)
    found = steps.propose(model, ours.params, cache, hidden, scores, **ours_settings)
    logprobs = steps.score(
        model, ours.params, cache, hidden, found.tokens, found.lengths, chunk=search.num_beams
    )
    marginal = np.asarray(steps.mix(scores, logprobs))
    counts = (np.asarray(found.lengths) > 0).sum(axis=1)
    assert counts.max() > 1  # there is something to rank
    for b in range(QUESTIONS):
        part = slice(b * DOCS, (b + 1) * DOCS)
        count = int(counts[b])
        wanted = theirs["sequence"].generate(
            context_input_ids=torch.tensor(tokens[part], dtype=torch.long),
            context_attention_mask=torch.tensor(mask[part]).long(),
            doc_scores=torch.tensor(scores[b : b + 1]), n_docs=DOCS, num_beams=search.num_beams,
            num_return_sequences=count, **settings,
        )  # fmt: skip
        rows = [strip(row, len(model.config.start_ids)) for row in wanted.numpy()]
        order = np.argsort(-marginal[b], kind="stable")[:count]
        assert [found.tokens[b, c, : found.lengths[b, c]].tolist() for c in order] == rows
        again = np.tile(scores[b], (count, 1))
        with torch.no_grad():
            losses = ask(
                theirs["sequence"], np.tile(tokens[part], (count, 1)),
                np.tile(mask[part], (count, 1)), again, labels=wanted, exclude_bos_score=True,
            ).loss.numpy()  # fmt: skip
        close(-marginal[b, order], losses, "scores")
