"""Texts to embeddings, and embeddings to the passages nearest to a question."""

from rag_jax.retrieval.encode import encode_texts, pool_mean
from rag_jax.retrieval.index import Index

__all__ = ["Index", "encode_texts", "pool_mean"]
