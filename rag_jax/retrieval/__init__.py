"""Texts to embeddings, and embeddings to the passages nearest to a question."""

from rag_jax.retrieval.encode import embed, encode_texts, pool_mean
from rag_jax.retrieval.index import Index

__all__ = ["Index", "embed", "encode_texts", "pool_mean"]
