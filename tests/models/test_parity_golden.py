"""Our models against what Hugging Face computed with the same tiny random weights.

The golden files come from `tests/golden/make.py`; these tests need no PyTorch.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.decoding import generate
from rag_jax.models import load
from rag_jax.models.io.weights import list_slots
from rag_jax.models.nn.bart import Bart
from rag_jax.retrieval import embed, encode_texts

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMAS = ("llama_tied", "llama_untied_sharded")
DPRS = ("dpr_question", "dpr_context")
FAMILIES = ("llama3", "phi3", "qwen2", "stablelm", "mistral", "qwen3", "gemma3", "smollm3")


def compare(ours, theirs, mask):
    np.testing.assert_allclose(np.asarray(ours)[mask], theirs[mask], atol=1e-4, rtol=0)


def read_golden(name):
    return json.loads((GOLDEN / name / "golden.json").read_text("utf-8"))


def read_arrays(name):
    arrays = dict(np.load(GOLDEN / name / "golden.npz"))
    masks = {k: v.astype(bool) for k, v in arrays.items() if k.endswith("mask")}
    return arrays | masks


@partial(jax.jit, static_argnames=("model", "method"))
def run(model, params, *inputs, method=None, **settings):
    return model.apply({"params": params}, *inputs, method=method, **settings)


@pytest.mark.parametrize("name", (*LLAMAS, *FAMILIES))
def test_decoder_logits(name):
    arrays = read_arrays(name)
    model = load(GOLDEN / name)
    logits = run(model.model, model.params, arrays["tokens"], mask=arrays["mask"])
    assert np.abs(arrays["logits"]).max() > 1  # far from a constant
    compare(logits, arrays["logits"], arrays["mask"])


def test_bert_hidden_states():
    arrays = read_arrays("bert")
    model = load(GOLDEN / "bert")
    hidden = run(model.model, model.params, arrays["tokens"], arrays["mask"])
    compare(hidden, arrays["hidden"], arrays["mask"])
    typed = run(model.model, model.params, arrays["tokens"], arrays["mask"], arrays["types"])
    compare(typed, arrays["hidden_typed"], arrays["mask"])


def test_bert_ignores_padding_tokens():
    arrays = read_arrays("bert")
    model = load(GOLDEN / "bert")
    other = np.where(arrays["mask"], arrays["tokens"], 7)
    hidden = run(model.model, model.params, other, arrays["mask"])
    compare(hidden, arrays["hidden"], arrays["mask"])


def test_bert_refuses_more_tokens_than_positions():
    model = load(GOLDEN / "bert")
    with pytest.raises(ValueError, match="only 24 positions"):
        run(model.model, model.params, np.zeros((1, 25), np.int32))


@pytest.mark.parametrize("name", DPRS)
def test_dpr_embeddings(name):
    golden, arrays = read_golden(name), read_arrays(name)
    dpr = load(GOLDEN / name)
    read = jax.jit(partial(embed, dpr.model))
    embeddings = read(dpr.params, arrays["tokens"], arrays["mask"])
    assert embeddings.shape == (4, dpr.model.embedding_size) and embeddings.std() > 0.3
    np.testing.assert_allclose(embeddings, arrays["embeddings"], atol=1e-4, rtol=0)
    texts = [text if isinstance(text, str) else tuple(text) for text in golden["texts"]]
    of_texts = encode_texts(dpr, texts, max_length=64)
    np.testing.assert_allclose(of_texts, arrays["of_texts"], atol=1e-4, rtol=0)


def test_bart_states_and_logits():
    arrays = read_arrays("bart")
    bart = load(GOLDEN / "bart")
    mask, decoder_mask = arrays["mask"], arrays["decoder_mask"]
    encoded = run(bart.model, bart.params, arrays["tokens"], mask, method="encode")
    compare(encoded, arrays["encoded"], mask)
    inputs = arrays["tokens"], arrays["decoder_tokens"], mask, decoder_mask
    assert arrays["logits"].std() > 0.5
    compare(run(bart.model, bart.params, *inputs), arrays["logits"], decoder_mask)
    unscaled = Bart(replace(bart.config, scale_embedding=False))
    compare(run(unscaled, bart.params, *inputs), arrays["logits_unscaled"], decoder_mask)

    @jax.jit
    def tap_layers(params, encoded):
        read = partial(bart.model.apply, {"params": params})
        given = {
            "mask": decoder_mask,
            "prefix": read(encoded, method="read_source"),
            "prefix_mask": mask,
        }
        return [
            read(
                arrays["decoder_tokens"], **given, return_layer=return_layer, method="hidden"
            ).layer_output
            for return_layer in range(len(arrays["decoded"]))
        ]

    for layer_output, expected in zip(
        tap_layers(bart.params, encoded), arrays["decoded"], strict=True
    ):
        compare(layer_output, expected, decoder_mask)


def test_bart_generates_what_transformers_does():
    golden = read_golden("bart")
    bart = load(GOLDEN / "bart")
    assert (bart.config.forced_bos_id, bart.config.forced_eos_id) == (0, 2)
    eos, ends = bart.config.eos_id, set()
    for forced, theirs in golden["generated"]:
        bos_id, eos_id = forced["forced_bos_token_id"], forced["forced_eos_token_id"]
        model = Bart(replace(bart.config, forced_bos_id=bos_id, forced_eos_id=eos_id))
        # Its ten new tokens count the two that are forced.
        ours = generate(
            model,
            bart.params,
            golden["prompts"],
            max_tokens=10 - (bos_id is not None) - (eos_id is not None),
            stop_ids=[eos],
        )
        start = list(model.config.start_ids)
        for row, new in zip(theirs, ours, strict=True):
            end = row.index(eos, 1) if eos in row[1:] else len(row)
            assert row[: len(start)] == start and row[len(start) : end] == new
            ends.add("limit" if end >= 10 else "eos")
    assert ends == {"limit", "eos"}


@pytest.mark.parametrize("name", (*LLAMAS, *FAMILIES, "bert", *DPRS, "bart"))
def test_loaded_tree_is_the_tree_init_makes(name):
    model = load(GOLDEN / name)
    tokens = [jnp.zeros((1, 4), jnp.int32)] * (2 if name == "bart" else 1)
    fresh = jax.eval_shape(model.model.init, jax.random.key(0), *tokens)["params"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    assert len(list_slots(model.config)) == len(jax.tree.leaves(fresh))


def test_dtype():
    params = load(GOLDEN / "bert", dtype="bfloat16").params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("name", LLAMAS)
def test_decoder_tokens(name):
    golden = read_golden(name)
    tokenizer = load(GOLDEN / name).tokenizer
    for text, ids in golden["texts"].items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    for chat in golden["chats"]:
        assert tokenizer.encode_chat(chat["messages"]) == chat["ids"]


def test_bert_tokens():
    golden = read_golden("bert")
    tokenizer = load(GOLDEN / "bert").tokenizer
    for length, texts in golden["texts"].items():
        for text, ids in texts.items():
            assert tokenizer.encode_with_specials(text, max_length=int(length)) == ids
    for text, pair, length, ids in golden["pairs"]:
        assert tokenizer.encode_with_specials(text, max_length=length, pair=pair) == ids


def test_bart_tokens():
    golden = read_golden("bart")
    tokenizer = load(GOLDEN / "bart").tokenizer
    for text, ids in golden["texts"].items():
        assert [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] == ids
        assert tokenizer.decode(ids) == text


def test_fingerprints_differ():
    names = (*LLAMAS, "bert", *DPRS, "bart")
    prints = {load(GOLDEN / name).fingerprint for name in names}
    assert len(prints) == len(names) and all(len(p) == 64 for p in prints)
