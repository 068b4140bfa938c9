"""Rerankers as sentence-transformers saves them: a model alone in `modules.json`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_encoders import change_json, write_modules, write_reranker

from rag_jax.models import load, load_reranker
from rag_jax.models.io.hub import fingerprint
from rag_jax.models.io.reranker import check_reranker
from rag_jax.models.io.sizes import find_pooling
from rag_jax.retrieval import score_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.search_config import YesNo

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS, TRANSFORMER = "config_sentence_transformers.json", "sentence_bert_config.json"
PAIRS = [("the river", "a river bank"), ("bread", "snow and ice")]


@pytest.fixture
def folder(tmp_path):
    return write_reranker(tmp_path / "bert")


def test_a_model_alone_is_the_model_without_settings(folder):
    plain = load_reranker(folder)
    write_modules(folder)
    change_json(folder / PROMPTS, prompts={"rank": "q: ", "none": ""}, default_prompt_name="none")
    settings = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    change_json(folder / TRANSFORMER, **settings)
    found = load_reranker(folder)
    assert found.fingerprint == plain.fingerprint == fingerprint(folder)
    assert find_pooling(str(folder)) is None
    scores = (score_pairs(reranker, PAIRS, max_length=16) for reranker in (found, plain))
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            PROMPTS,
            {"prompts": {"rank": "q: "}, "default_prompt_name": "rank"},
            "default_prompt_name 'rank' is not supported: a reranker has no prompts",
        ),
        (TRANSFORMER, {"max_seq_length": 5}, "max_seq_length 5 is not supported"),
        (TRANSFORMER, {"do_lower_case": True}, "do_lower_case True is not supported"),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not"),
        (TRANSFORMER, {"config_args": {"a": 1}}, "config_args .* is not supported"),
    ],
)
def test_settings_beside_modules_are_refused(file, fields, message, folder):
    change_json(folder / file, **fields)
    check_reranker(folder)  # without modules.json, sentence-transformers does not follow them
    write_modules(folder)
    for function in (check_reranker, load_reranker):
        with pytest.raises(RagJaxError, match=message) as error:
            function(folder)
        assert str(folder / file) in str(error.value) and "\n" not in str(error.value)


def test_a_language_model_that_is_asked(tmp_path):
    """As sentence-transformers 6 saves one: a module of its own reads the answers."""
    folder = shutil.copytree(GOLDEN / "llama_tied", tmp_path / "llama")
    question = YesNo("", " ", "", yes="a", no="b")
    plain = load_reranker(folder, question=question)
    yes, no = (plain.base.tokenizer.encode(answer)[0] for answer in "ab")
    write_modules(folder, ("LogitScore", {"true_token_id": yes, "false_token_id": no}))
    found = load_reranker(folder, question=question)
    assert found.fingerprint == plain.fingerprint
    scores = (score_pairs(reranker, PAIRS, max_length=64) for reranker in (found, plain))
    np.testing.assert_array_equal(*scores)
    assert load(folder).fingerprint == plain.fingerprint
    with pytest.raises(RagJaxError, match="a language model is one if it is asked a question"):
        load_reranker(folder)
    for function in (check_reranker, load_reranker):
        with pytest.raises(RagJaxError, match=f"true_token_id {yes} is not the token of the answ"):
            function(folder, question=YesNo("", " ", "", yes="b", no="a"))
    write_modules(folder, ("LogitScore", {"true_token_id": yes, "false_token_id": None}))
    with pytest.raises(RagJaxError, match="false_token_id is missing or null: a score of one tok"):
        load_reranker(folder, question=question)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RagJaxError, match="LogitScore' lies outside its folder: '../elsewhere'"):
        load(folder)


def test_a_head_in_modules_of_its_own_is_named(folder):
    write_modules(folder, ("Pooling", {}), ("Dense", {}))
    change_json(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(RagJaxError, match="a Bert with architectures .* is no reranker"):
        load_reranker(folder)
    change_json(folder / PROMPTS, model_type="CrossEncoder")
    message = "modules.json: a CrossEncoder of the modules 'Transformer', 'Pooling', 'Dense' is not"
    with pytest.raises(RagJaxError, match=message):
        load_reranker(folder)


def test_an_encoder_without_its_pooling_is_still_refused(folder):
    write_modules(folder)
    change_json(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(RagJaxError, match="modules.json has no module Pooling"):
        load(folder)
