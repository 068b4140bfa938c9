"""A sentence encoder's own settings are those that are followed, or they are refused by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rag_jax.models import load
from rag_jax.models.nn.bert import Bert
from rag_jax.retrieval import encode_texts
from rag_jax.runtime.errors import RagJaxError

BERT = Path(__file__).parents[1] / "golden" / "bert"
PREFIX = "sentence_transformers.models."


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BERT, tmp_path / "model")


def write(folder, *, modules=("Transformer", "Pooling", "Normalize"), pooling=None, prompts=None):
    """Writes the files of sentence-transformers; `pooling` are the fields of 1_Pooling."""
    folders = {"Transformer": "", "Pooling": "1_Pooling"}
    entries = [
        {"idx": i, "name": str(i), "path": folders.get(kind, f"{i}_{kind}"), "type": prefix + kind}
        for i, (prefix, kind) in enumerate(
            (PREFIX, kind) if "." not in kind else ("", kind) for kind in modules
        )
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def embed(folder):
    return encode_texts(load(folder), ["What is the capital of France?"], max_length=16)


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": MEAN},
        {"pooling": {"pooling_mode": "mean", "embedding_dimension": 8}},
        {"pooling": {}},
        {"modules": ("Transformer", "Pooling", "Dropout", "Normalize")},
        {"prompts": {"__version__": {}, "prompts": {"query": "", "document": ""}}},
        {"prompts": {"default_prompt_name": None, "similarity_fn_name": "cosine"}},
    ],
)
def test_the_normalised_mean_is_followed(settings, folder):
    expected = embed(BERT)
    write(folder, **settings)
    np.testing.assert_array_equal(embed(folder), expected)
    assert load(folder).fingerprint == load(BERT).fingerprint


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
PLAIN = ("Transformer", "Pooling")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": CLS}, r"modules.json asks for the pooling 'cls', .* choose another"),
        ({"pooling": CLS, "modules": PLAIN}, "'cls' and .* any length, .*encoder.pooling='cls'"),
        ({"modules": PLAIN}, "modules.json asks for embeddings of any length, but .* normalised"),
        ({"pooling": {"pooling_mode_cls_token": True}}, r"the pooling 'cls\+mean'"),
        ({"pooling": {**MEAN, "pooling_mode_max_tokens": True}}, r"the pooling 'max\+mean'"),
        ({"pooling": {"pooling_mode": "lasttoken"}}, "the pooling 'lasttoken'"),
        ({"pooling": {"pooling_mode_mean_tokens": False}}, "the pooling 'none'"),
        ({"prompts": {"prompts": {"query": "query: ", "x": ""}}}, "the prompts 'query', but"),
    ],
)
def test_other_embeddings_are_refused(settings, message, folder):
    write(folder, **settings)
    with pytest.raises(RagJaxError, match=message):
        embed(folder)


def test_settings_without_modules(folder):
    write(folder, pooling=CLS, prompts={"prompts": {}})
    (folder / "modules.json").unlink()
    with pytest.raises(RagJaxError, match=r"1_Pooling.config.json asks for the pooling 'cls'"):
        embed(folder)
    shutil.rmtree(folder / "1_Pooling")
    np.testing.assert_array_equal(embed(folder), embed(BERT))


@pytest.mark.parametrize("kind", ["Dense", "LSTM", "WeightedLayerPooling", "custom_st.Transformer"])
def test_other_modules_are_refused_at_loading(kind, folder):
    write(folder, modules=("Transformer", "Pooling", kind, "Normalize"))
    with pytest.raises(RagJaxError, match=rf"modules.json: module .*{kind} is not supported"):
        load(folder)


def test_damaged_settings_are_named(folder):
    write(folder, modules=("Transformer",))
    with pytest.raises(RagJaxError, match="modules.json has no module Pooling"):
        load(folder)
    write(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(RagJaxError, match=r"1_Pooling.config.json is missing: copy"):
        load(folder)
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(RagJaxError, match="modules.json is no list of modules"):
        load(folder)


def test_lower_case_matters_to_a_tokenizer_with_both_cases(folder):
    write(folder)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    path = folder / "tokenizer.json"
    core = json.loads(path.read_text())
    core["normalizer"]["lowercase"] = True
    path.write_text(json.dumps(core))
    embed(folder)
    core["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(core))
    with pytest.raises(RagJaxError, match="asks for texts in lower case"):
        embed(folder)


def test_the_cls_state_is_followed_by_dprs_encoders(folder):
    write(folder, pooling=CLS, modules=PLAIN)
    encoder = load(folder)
    config = replace(encoder.config, dpr_role="question")
    encode_texts(replace(encoder, config=config, model=Bert(config)), ["a"], max_length=16)
    write(folder, pooling=MEAN, modules=("Transformer", "Pooling", "Normalize"))
    encoder = replace(load(folder), config=config, model=Bert(config))
    with pytest.raises(RagJaxError, match="the pooling 'mean' and embeddings scaled to length 1"):
        encode_texts(encoder, ["a"], max_length=16)
