"""Encoders of every kind against sentence-transformers, live, on tiny folders that it writes.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import json

import numpy as np
import pytest
from tiny_transformers import make_transformer

from rag_jax.config import EncoderConfig
from rag_jax.models import load
from rag_jax.models import save as save_model
from rag_jax.retrieval import encode_texts
from rag_jax.retrieval.texts import configure_encoder

pytestmark = pytest.mark.parity

TEXTS = [
    "What is the capital of France?",
    "a",
    "Paris is the capital and the largest city of France. " * 12,
    "東京 naïve \U0001f5fc",
]
KINDS = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert", "qwen3", "mistral"]


def make_folder(kind, folder, *, pooling="mean", dense=(), normalize=True, **options):
    """A folder of sentence-transformers, and its model."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    make_transformer(kind, folder / "transformer")
    # The tokenizer's padding is BERT's, and no model sees it.
    transformer = models.Transformer(str(folder / "transformer"), max_seq_length=128)
    modules = [transformer, models.Pooling(32, pooling_mode=pooling, **options.pop("pool", {}))]
    size = modules[1].get_embedding_dimension()
    for outputs, activation in dense:
        layer = models.Dense(size, outputs, activation_function=activation())
        torch.nn.init.normal_(layer.linear.weight, std=0.3)
        modules.append(layer)
        size = outputs
    modules += [models.Normalize()] if normalize else []
    theirs = SentenceTransformer(modules=modules, device="cpu", **options)
    theirs.save(str(folder / "saved"))
    return folder / "saved", theirs.eval()


def compare(folder, theirs, *, tolerance=1e-4):
    ours = load(folder)
    found = encode_texts(ours, TEXTS, max_length=128)
    # They are compared by cosines: ours have length 1 whether or not theirs do.
    wanted = theirs.encode(TEXTS, normalize_embeddings=True)
    print("embeddings", np.abs(found - wanted).max() / np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, atol=tolerance * max(1, np.abs(wanted).max()))
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, tmp_path):
    from sentence_transformers import SentenceTransformer

    pytest.importorskip("torch")
    pooling = "lasttoken" if kind in ("qwen3", "mistral") else "mean"
    folder, theirs = make_folder(kind, tmp_path, pooling=pooling, normalize=False)
    ours = compare(folder, theirs)
    save_model(ours, tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    again.max_seq_length = 128
    wanted = theirs.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(again.encode(TEXTS), wanted, atol=1e-6)


def test_tokens_that_attend_to_later_ones(tmp_path):
    """EmbeddingGemma's kind: windows to both sides, dense layers, texts longer than a window."""
    import torch

    folder, theirs = make_folder(
        "gemma3_text", tmp_path, dense=[(24, torch.nn.Identity), (32, torch.nn.Identity)]
    )
    ours = compare(folder, theirs)
    assert ours.config.window == 9 and ours.config.bidirectional
    save_model(ours, tmp_path / "ours")
    compare(tmp_path / "ours", theirs)


def test_a_decoder_that_is_not_causal(tmp_path):
    from sentence_transformers import SentenceTransformer

    folder, causal = make_folder("qwen3", tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_causal": False}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert np.abs(theirs.encode(TEXTS) - causal.encode(TEXTS)).max() > 0.1
    save_model(compare(folder, theirs), tmp_path / "ours")
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    again.max_seq_length = 128
    np.testing.assert_allclose(again.encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "pooling",
    ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "max", "mean")],
)
def test_poolings(pooling, tmp_path):
    compare(*make_folder("bert", tmp_path, pooling=pooling))


def test_dense_layers(tmp_path):
    import torch

    layers = [(40, torch.nn.Tanh), (24, torch.nn.GELU), (16, torch.nn.Identity)]
    compare(*make_folder("bert", tmp_path, dense=layers))


@pytest.mark.parametrize("include", [True, False])
def test_prompts_and_dimensions(include, tmp_path):
    prompts = {"query": "find what answers: ", "document": "passage: ", "other": "so: "}
    options = {"prompts": prompts, "default_prompt_name": "other"}
    pool = {"pool": {"include_prompt": include}}
    folder, theirs = make_folder("bert", tmp_path, **options, **pool)
    ours = compare(folder, theirs)
    roles = {"query": theirs.encode_query, "document": theirs.encode_document}
    for role, encode in roles.items():
        found = encode_texts(ours, TEXTS, role=role, max_length=128)
        np.testing.assert_allclose(found, encode(TEXTS), atol=1e-4)
    few = configure_encoder(ours, EncoderConfig(dimensions=12))
    wanted = theirs.encode_query(TEXTS, truncate_dim=12, normalize_embeddings=True)
    found = encode_texts(few, TEXTS, role="query", max_length=128)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
