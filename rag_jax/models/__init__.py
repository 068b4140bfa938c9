"""Pretrained models: configs, weights and tokenizers, loaded from disk and saved."""

from rag_jax.models.io.load import Pretrained, load, load_tokenizer
from rag_jax.models.io.multi_vector import MultiVectorEncoder, load_multi_vector
from rag_jax.models.io.reranker import Reranker, load_reranker, save_reranker
from rag_jax.models.io.save import save
from rag_jax.models.io.sparse import SparseEncoder, load_sparse

__all__ = [
    "MultiVectorEncoder",
    "Pretrained",
    "Reranker",
    "SparseEncoder",
    "load",
    "load_multi_vector",
    "load_reranker",
    "load_sparse",
    "load_tokenizer",
    "save",
    "save_reranker",
]
