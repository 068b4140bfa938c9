"""Rerankers of every kind against transformers, live, on tiny folders that it writes.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import json

import numpy as np
import pytest
from tiny_transformers import make_transformer

from rag_jax.models import load_reranker, save_reranker
from rag_jax.retrieval import score_pairs
from rag_jax.search_config import YesNo

pytestmark = pytest.mark.parity

PAIRS = [
    ("What is the capital of France?", "Paris is the capital of France. " * 12),
    ("a", "b"),
    ("東京 naïve", "the largest city"),
    ("who wrote it? " * 20, "the largest city " * 20),
]
ENCODERS = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"]


def make_scored(kind, folder, **changes):
    model = "AutoModelForSequenceClassification"
    make_transformer(kind, folder, model=model, num_labels=1, **changes)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [*((kind, {}) for kind in ENCODERS), ("modernbert", {"classifier_pooling": "mean"})],
)
def test_cross_encoders(kind, changes, tmp_path):
    import torch
    from sentence_transformers import CrossEncoder

    folder = make_scored(kind, tmp_path / "scored", **changes)
    if kind == "bert":  # whose own tokenizer, and not the one without a class, tells types
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"tokenizer_class": "BertTokenizer"}
        path.write_text(json.dumps(settings))
    theirs = CrossEncoder(str(folder), device="cpu", max_length=128)
    wanted = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    theirs.save_pretrained(str(tmp_path / "theirs"))  # beside `modules.json`
    found = score_pairs(load_reranker(tmp_path / "theirs"), PAIRS, max_length=128)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    found = score_pairs(load_reranker(folder), PAIRS, max_length=128)
    print("scores", np.abs(found - wanted).max(), "of", np.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
    save_reranker(load_reranker(folder), tmp_path / "ours")
    again = CrossEncoder(str(tmp_path / "ours"), device="cpu", max_length=128)
    saved = again.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(saved, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


def read(model, rows):
    """What a model of transformers gives for rows without padding."""
    import torch

    with torch.no_grad():
        return np.concatenate([model(torch.tensor([row])).logits.numpy() for row in rows])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_scores_of_the_last_token(kind, tmp_path):
    import transformers

    from rag_jax.retrieval.rerank import tokenize_pairs

    folder = make_scored(kind, tmp_path / "scored")
    ours = load_reranker(folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = list(tokenize_pairs(ours, PAIRS, 128))
    wanted = read(theirs, rows)[:, 0]
    found = score_pairs(ours, PAIRS, max_length=128)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("tied", [True, False])
def test_log_odds_of_yes(tied, tmp_path):
    import transformers

    from rag_jax.retrieval.rerank import tokenize_pairs

    folder = tmp_path / "lm"
    make_transformer("qwen3", folder, model="AutoModelForCausalLM", tie_word_embeddings=tied)
    question = YesNo("[CLS] query: ", " document: ", "[SEP] is it?", yes="a", no="b")
    ours = load_reranker(folder, question=question)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = list(tokenize_pairs(ours, PAIRS, 128))
    yes, no = (ours.base.tokenizer.encode(answer)[0] for answer in "ab")
    import torch

    with torch.no_grad():
        logits = np.stack([theirs(torch.tensor([row])).logits[0, -1].numpy() for row in rows])
    wanted = logits[:, yes] - logits[:, no]
    found = score_pairs(ours, PAIRS, max_length=128)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(1, np.abs(wanted).max()))
