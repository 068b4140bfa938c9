"""Sparse encoders against sentence-transformers, live, on tiny folders that it writes.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import numpy as np
import pytest
from tiny_transformers import make_transformer

from rag_jax.models import load_sparse
from rag_jax.retrieval import SparseIndex, encode_sparse

pytestmark = pytest.mark.parity

TEXTS = [
    "What is the capital of France?",
    "",
    "Paris is the capital and the largest city of France. " * 12,
    "東京 naïve \U0001f5fc",
]
KINDS = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"]


def make_masked(kind, folder, **changes):
    make_transformer(kind, folder, model="AutoModelForMaskedLM", **changes)
    return folder


def compare(folder, theirs):
    theirs.max_seq_length = 128
    ours = load_sparse(folder)
    roles = {None: theirs.encode, "query": theirs.encode_query, "document": theirs.encode_document}
    for role, encode in roles.items():
        found = encode_sparse(ours, TEXTS, role=role, max_length=128)
        wanted = encode(TEXTS, convert_to_sparse_tensor=False).numpy()
        print("weights", np.abs(found.toarray() - wanted).max(), "of", wanted.max())
        np.testing.assert_allclose(found.toarray(), wanted, atol=1e-4 * max(1, wanted.max()))
    index = SparseIndex.build(found, encoder=ours.fingerprint)
    scores, rows = index.search(found, len(TEXTS))
    products = theirs.similarity(wanted, wanted).numpy()
    for own, hits, product in zip(scores, rows, products, strict=True):
        np.testing.assert_allclose(own, product[hits], rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_plain_folders(kind, tied, tmp_path):
    from sentence_transformers import SparseEncoder

    folder = make_masked(kind, tmp_path / "masked", tie_word_embeddings=tied)
    compare(folder, SparseEncoder(str(folder), device="cpu"))


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_folders_with_settings(strategy, activation, tmp_path):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    folder = make_masked("bert", tmp_path / "masked")
    modules = [Transformer(str(folder), transformer_task="fill-mask")]
    modules.append(SpladePooling(strategy, activation))
    prompts = {"query": "find what answers: ", "document": "passage: "}
    options = {"prompts": prompts, "default_prompt_name": "document", "device": "cpu"}
    theirs = SparseEncoder(modules=modules, **options)
    theirs.save(str(tmp_path / "saved"))
    compare(tmp_path / "saved", theirs)
