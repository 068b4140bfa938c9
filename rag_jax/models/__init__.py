"""Pretrained models: configs, weights and tokenizers, loaded from disk and saved."""

from rag_jax.models.io.load import Pretrained, load, load_tokenizer
from rag_jax.models.io.save import save
from rag_jax.models.io.sparse import SparseEncoder, load_sparse

__all__ = ["Pretrained", "SparseEncoder", "load", "load_sparse", "load_tokenizer", "save"]
