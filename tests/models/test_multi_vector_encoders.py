"""Late-interaction encoders: their folders are read whole, or refused in a line."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_encoders import BERT, change_json, write_colbert, write_modules, write_splade

from rag_jax.models import load, load_multi_vector, load_sparse
from rag_jax.models.io.multi_vector import Expansion
from rag_jax.runtime.errors import RagJaxError

FIXED = {"strategy": "fixed", "length": 12, "attend": False, "token": None}
MASK, MODULE = "2_MultiVectorMask/config.json", "sentence_bert_config.json"


@pytest.fixture
def folder(tmp_path):
    return write_colbert(tmp_path / "colbert", expansion=FIXED)


def test_settings_are_followed(folder, tmp_path):
    found = load_multi_vector(folder)
    tokenizer = found.base.tokenizer
    assert found.width == 6 and found.settings.expansion == Expansion(12)
    assert found.lengths == {"query": 12, "document": 16}
    assert found.expansion_id == tokenizer.token_id("[MASK]")
    # The third is no token of this vocabulary.
    ids = tuple(sorted(tokenizer.find_id(name) for name in ".,"))
    assert found.skipped_ids == {"query": (), "document": ids}
    least = {"strategy": "min", "length": 8, "attend": True, "token": "[SEP]"}
    other = write_colbert(tmp_path / "b", expansion=least, skiplist_tasks=["query", "document"])
    change_json(other / MODULE, query_length=10)
    found = load_multi_vector(other)
    assert found.settings.expansion == Expansion(8, cuts=False, attends=True, token="[SEP]")
    assert found.lengths["query"] == 10 and found.skipped_ids["query"] == ids
    assert found.expansion_id == tokenizer.token_id("[SEP]")


def test_lengths_without_settings_are_the_positions(tmp_path):
    plain = write_colbert(tmp_path / "a")
    (plain / MODULE).unlink()
    assert load_multi_vector(plain).lengths == {"query": 24, "document": 24}
    change_json(plain / "tokenizer_config.json", model_max_length=20)
    assert load_multi_vector(plain).lengths == {"query": 20, "document": 20}
    change_json(plain / "sentence_roberta_config.json", query_length=8)
    assert load_multi_vector(plain).lengths == {"query": 8, "document": 20}


def test_fingerprints_tell_encoders_apart(folder):
    prints = {load_multi_vector(folder).fingerprint, load(BERT).fingerprint}
    change_json(folder / MODULE, document_length=12)
    prints.add(load_multi_vector(folder).fingerprint)
    change_json(folder / MASK, skiplist_words=["."])
    prints.add(load_multi_vector(folder).fingerprint)
    path = folder / "1_Dense" / "model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)
    prints.add(load_multi_vector(folder).fingerprint)
    assert len(prints) == 5


def test_an_encoder_of_another_kind_is_named(folder, tmp_path):
    message = r"is of a late-interaction encoder, not a {} one: load it by rag_jax.*load_multi_vec"
    with pytest.raises(RagJaxError, match=message.format("dense")):
        load(folder)
    with pytest.raises(RagJaxError, match=message.format("sparse")):
        load_sparse(folder)
    with pytest.raises(RagJaxError, match="is of a sparse encoder, not a late-interaction one"):
        load_multi_vector(write_splade(tmp_path / "splade"))
    write_modules(folder, ("Pooling", {}))
    with pytest.raises(RagJaxError, match="is of a dense encoder, not a late-interaction one"):
        load_multi_vector(folder)
    with pytest.raises(RagJaxError, match=r"has no modules.json.*ColBERT in another form: load it"):
        load_multi_vector(BERT)
    path = folder / "modules.json"
    path.write_text('[{"path": "", "type": "T"}, {"path": "a", "type": "pylate.models.Dense"}]')
    for loader in (load, load_sparse, load_multi_vector):
        with pytest.raises(RagJaxError, match=r"in PyLate's form: load it by the MultiVectorEnc"):
            loader(folder)
    with pytest.raises(RagJaxError, match="a Decoder is no late-interaction encoder"):
        load_multi_vector(BERT.parent / "llama_tied")


def expand(**changes):
    return {"query_expansion": {**FIXED, **changes}}


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        (MASK, {"keep_only_token_ids": [3]}, "keep_only_token_ids .3. is not supported"),
        (MASK, {"skiplist_words": "."}, "skiplist_words must be a list of texts"),
        (MASK, {"skiplist_tasks": ["other"]}, "skiplist_tasks names 'other'"),
        (MODULE, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask' is not"),
        (MODULE, {"query_expansion": 3}, "query_expansion must be a JSON object"),
        (MODULE, expand(strategy="max"), "query_expansion.strategy must be fixed or min"),
        (MODULE, expand(attend="no"), "and attend true or false"),
        (MODULE, expand(length=0), "query_expansion.length must be a positive integer"),
        (MODULE, expand(length=25), "a query may have 25 tokens, but .* for only 24"),
        (MODULE, expand(token="[Z]"), "query_expansion.token '.Z.' is none of the tokenizer's"),
        (MODULE, expand(token=3), "query_expansion.token must be a text"),
        (MODULE, {"document_length": 99}, "a document may have 99 tokens"),
        ("3_Normalize/config.json", {"module_input_name": None}, "must be token_embeddings"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "'sentence_embeddin"),
        ("1_Dense/config.json", {"in_features": 31}, "in_features 31, but what is before it gives"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "dot"}, "'dot' is not supp"),
    ],
)
def test_what_a_folder_asks_for_beyond_is_refused(place, fields, message, folder):
    change_json(folder / place, **fields)
    with pytest.raises(RagJaxError, match=message) as error:
        load_multi_vector(folder)
    assert str(folder / place) in str(error.value) and "\n" not in str(error.value)


def test_other_modules_and_damaged_layers_are_named(folder):
    path = folder / "1_Dense" / "model.safetensors"
    save_file({"linear.weight": np.full((6, 32), np.inf, np.float32)}, path)
    with pytest.raises(RagJaxError, match="1_Dense/model.safetensors: linear.weight has a NaN"):
        load_multi_vector(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "", "type": "sentence_transformers.a.HierarchicalTokenPooling"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RagJaxError, match="HierarchicalTokenPooling' is not supported"):
        load_multi_vector(folder)
    write_modules(folder)
    with pytest.raises(RagJaxError, match="has no module MultiVectorMask after its Transformer"):
        load_multi_vector(folder)
