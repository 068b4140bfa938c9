"""Our models against what Hugging Face computed with the same tiny random weights.

The golden files come from `tests/golden/make.py`; these tests need no PyTorch.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.models import load
from rag_jax.models.weights import list_slots

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMAS = ("llama_tied", "llama_untied_sharded")


def compare(ours, theirs, mask):
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-4, rtol=0)


def read_golden(name):
    golden = json.loads((GOLDEN / name / "golden.json").read_text("utf-8"))
    arrays = {k: jnp.asarray(v) for k, v in np.load(GOLDEN / name / "golden.npz").items()}
    return golden, arrays | {"mask": arrays["mask"].astype(bool)}


@pytest.mark.parametrize("name", LLAMAS)
def test_decoder_logits(name):
    _, arrays = read_golden(name)
    model = load(GOLDEN / name)
    logits = model.model.apply({"params": model.params}, arrays["tokens"], mask=arrays["mask"])
    assert jnp.abs(arrays["logits"]).max() > 1  # far from a constant
    compare(logits, arrays["logits"], arrays["mask"])


def test_bert_hidden_states():
    _, arrays = read_golden("bert")
    model = load(GOLDEN / "bert")
    hidden = model.model.apply({"params": model.params}, arrays["tokens"], arrays["mask"])
    compare(hidden, arrays["hidden"], arrays["mask"])
    typed = model.model.apply(
        {"params": model.params}, arrays["tokens"], arrays["mask"], arrays["types"]
    )
    compare(typed, arrays["hidden_typed"], arrays["mask"])


def test_bert_ignores_padding_tokens():
    _, arrays = read_golden("bert")
    model = load(GOLDEN / "bert")
    other = jnp.where(arrays["mask"], arrays["tokens"], 7)
    hidden = model.model.apply({"params": model.params}, other, arrays["mask"])
    compare(hidden, arrays["hidden"], arrays["mask"])


def test_bert_refuses_more_tokens_than_positions():
    model = load(GOLDEN / "bert")
    with pytest.raises(ValueError, match="only 24 positions"):
        model.model.apply({"params": model.params}, jnp.zeros((1, 25), jnp.int32))


@pytest.mark.parametrize("name", (*LLAMAS, "bert"))
def test_loaded_tree_is_the_tree_init_makes(name):
    model = load(GOLDEN / name)
    tokens = jnp.zeros((1, 4), jnp.int32)
    fresh = jax.eval_shape(model.model.init, jax.random.key(0), tokens)["params"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), model.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    assert len(list_slots(model.config)) == len(jax.tree.leaves(fresh))


def test_dtype():
    params = load(GOLDEN / "bert", dtype="bfloat16").params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}


@pytest.mark.parametrize("name", LLAMAS)
def test_decoder_tokens(name):
    golden, _ = read_golden(name)
    tokenizer = load(GOLDEN / name).tokenizer
    for text, ids in golden["texts"].items():
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    for chat in golden["chats"]:
        assert tokenizer.encode_chat(chat["messages"]) == chat["ids"]


def test_bert_tokens():
    golden, _ = read_golden("bert")
    tokenizer = load(GOLDEN / "bert").tokenizer
    for length, texts in golden["texts"].items():
        for text, ids in texts.items():
            assert tokenizer.encode_with_specials(text, max_length=int(length)) == ids
    for text, pair, length, ids in golden["pairs"]:
        assert tokenizer.encode_with_specials(text, max_length=length, pair=pair) == ids


def test_fingerprints_differ():
    prints = {load(GOLDEN / name).fingerprint for name in (*LLAMAS, "bert")}
    assert len(prints) == 3 and all(len(p) == 64 for p in prints)
