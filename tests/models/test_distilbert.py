"""DistilBERT is BERT without token types, under other names."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_encoders import BERT, change_json

from rag_jax.models import load, save
from rag_jax.retrieval import encode_texts
from rag_jax.runtime.errors import RagJaxError

LAYERS = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
FIELDS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_act": "activation",
}


@pytest.fixture
def folder(tmp_path):
    """Golden BERT as a DistilBERT: the first token type is part of the positions."""
    folder = shutil.copytree(BERT, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    types = tensors.pop("embeddings.token_type_embeddings.weight")
    tensors["embeddings.position_embeddings.weight"] += types[0]
    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder.layer."):
            *start, end = name.removeprefix("encoder.layer.").split(".")
            name = f"transformer.layer.{start[0]}.{LAYERS['.'.join(start[1:])]}.{end}"
        renamed[f"distilbert.{name}"] = tensor
    renamed["vocab_transform.bias"] = np.zeros(3, np.float32)  # of a head, which is left out
    save_file(renamed, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    fields = {FIELDS.get(name, name): value for name, value in fields.items()}
    (folder / "config.json").write_text(json.dumps(fields))
    change_json(folder / "config.json", model_type="distilbert")
    return folder


def test_embeddings_are_bert_s(folder, tmp_path):
    texts = ["the house", "a cat and a dog"]
    wanted = encode_texts(load(BERT), texts, max_length=16)
    encoder = load(folder)
    assert encoder.config.family == "distilbert" and encoder.config.num_types == 0
    np.testing.assert_allclose(encode_texts(encoder, texts, max_length=16), wanted, atol=1e-6)
    save(encoder, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == encoder.config
    np.testing.assert_allclose(encode_texts(again, texts, max_length=16), wanted, atol=1e-6)


def test_its_norms_are_transformers_own(folder):
    """Which has 1e-12 whatever the field says."""
    change_json(folder / "config.json", layer_norm_eps=1e-3)
    assert load(folder).config.norm_eps == 1e-12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 5}, "dim 32 is not a multiple of n_heads 5"),
        ({"activation": "relu"}, "activation 'relu' is not supported"),
        ({"n_layers": None}, "n_layers must be a positive integer, not None"),
    ],
)
def test_its_own_names_are_in_errors(fields, message, folder):
    change_json(folder / "config.json", **fields)
    with pytest.raises(RagJaxError, match=message):
        load(folder)
