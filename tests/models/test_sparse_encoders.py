"""Sparse encoders: their folders are read whole, or refused in a line."""

import shutil

import numpy as np
import pytest
from tiny_encoders import (
    BERT,
    VOCABULARY,
    WIDTH,
    change_json,
    change_weights,
    write_masked,
    write_modules,
    write_splade,
)

from rag_jax.models import load, load_sparse
from rag_jax.models.nn.masked_head import Splade
from rag_jax.retrieval import encode_sparse
from rag_jax.runtime.errors import RagJaxError

HEAD = "cls.predictions"


@pytest.fixture
def folder(tmp_path):
    return write_splade(tmp_path / "splade")


def weigh(folder):
    return encode_sparse(load_sparse(folder), ["the house"], max_length=16).toarray()


def test_settings_are_followed(tmp_path):
    fields = {"pooling_strategy": "sum", "activation_function": "log1p_relu"}
    found = load_sparse(write_splade(tmp_path / "a", **fields))
    assert found.pooling == Splade("sum", "log1p_relu")
    assert dict(found.base.sentence.prompts) == {"query": "ask: "}
    assert load_sparse(write_splade(tmp_path / "b")).pooling == Splade("max", "relu")
    assert load_sparse(write_masked(tmp_path / "c")).pooling == Splade("max", "relu")


def test_older_names_and_copies_are_read(folder, tmp_path):
    wanted = weigh(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    table = np.asarray(load_sparse(folder).base.params["embed"]["word"]["embedding"])
    bias = np.asarray(load_sparse(folder).base.params["head"]["bias"])
    copies = {f"{HEAD}.decoder.weight": table, f"{HEAD}.decoder.bias": bias}
    change_weights(other, copies, drop=f"{HEAD}.bias")
    np.testing.assert_array_equal(weigh(other), wanted)
    change_weights(other, {f"{HEAD}.decoder.weight": 2 * table})
    with pytest.raises(RagJaxError, match="decoder.weight differs from the embedding, the config"):
        load_sparse(other)
    change_json(other / "config.json", tie_word_embeddings=False)
    own = load_sparse(other).base.params["head"]
    np.testing.assert_array_equal(own["table"], 2 * table)
    assert (weigh(other) != wanted).any()


def test_fingerprints_tell_encoders_apart(folder, tmp_path):
    prints = {load_sparse(folder).fingerprint}
    prints.add(load_sparse(write_masked(tmp_path / "masked")).fingerprint)
    prints.add(load(tmp_path / "masked").fingerprint)  # the same files, as a dense encoder
    change_json(folder / "1_SpladePooling" / "config.json", pooling_strategy="sum")
    prints.add(load_sparse(folder).fingerprint)
    assert len(prints) == 4


def test_an_encoder_of_another_kind_is_named(folder, tmp_path):
    with pytest.raises(RagJaxError, match=r"is of a sparse encoder, not a dense one: load it by"):
        load(folder)
    write_modules(folder, ("Pooling", {}))
    with pytest.raises(RagJaxError, match=r"is of a dense encoder, not a sparse one: .*\.load$"):
        load_sparse(folder)
    with pytest.raises(RagJaxError, match="have no head over masked tokens.*rag_jax.models.load"):
        load_sparse(BERT)
    with pytest.raises(RagJaxError, match="a Decoder is no sparse encoder"):
        load_sparse(BERT.parent / "llama_tied")


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "pooling_strategy 'mean' is"),
        (
            "1_SpladePooling/config.json",
            {"activation_function": []},
            "activation_function .. is",
        ),
        (
            "sentence_bert_config.json",
            {"transformer_task": "a"},
            "transformer_task 'a' is not",
        ),
        (
            "config_sentence_transformers.json",
            {"max_active_dims": 3},
            "max_active_dims 3 is not",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "cosine"},
            "'cosine' is not",
        ),
        ("config.json", {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_what_a_folder_asks_for_beyond_is_refused(place, fields, message, folder):
    change_json(folder / place, **fields)
    with pytest.raises(RagJaxError, match=message) as error:
        load_sparse(folder)
    assert str(folder / place) in str(error.value) and "\n" not in str(error.value)


def test_other_modules_and_damaged_heads_are_named(folder):
    write_modules(folder, ("SpladePooling", {}), ("SparseAutoEncoder", {}))
    with pytest.raises(RagJaxError, match="SparseAutoEncoder' is not supported; supported are"):
        load_sparse(folder)
    write_modules(folder)
    with pytest.raises(RagJaxError, match="has no module SpladePooling after its Transformer"):
        load_sparse(folder)
    write_modules(folder, ("SpladePooling", {}))
    norm = f"{HEAD}.transform.LayerNorm.weight"
    change_weights(folder, {norm: np.full(WIDTH, np.nan, np.float32)})
    with pytest.raises(RagJaxError, match=rf"{norm} has a NaN"):
        load_sparse(folder)
    change_weights(folder, {f"{HEAD}.bias": np.zeros(VOCABULARY + 1, np.float32)}, drop=norm)
    with pytest.raises(RagJaxError, match=rf"missing {norm} \[32\]") as error:
        load_sparse(folder)
    assert f"{HEAD}.bias has shape [129], the config wants [128]" in str(error.value)
