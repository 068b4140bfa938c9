"""Retrieval: text encoders, dense and BM25 indices, hard negatives, contrastive training."""

from rag_jax.data.passages import fingerprint_corpus
from rag_jax.retrieval.bm25 import BM25
from rag_jax.retrieval.encode import embed, encode_texts
from rag_jax.retrieval.fusion import Fused
from rag_jax.retrieval.index import Index
from rag_jax.retrieval.searcher import Dense, Searcher
from rag_jax.retrieval.texts import list_texts, make_text

__all__ = [
    "BM25",
    "Dense",
    "Fused",
    "Index",
    "Searcher",
    "embed",
    "encode_texts",
    "fingerprint_corpus",
    "list_texts",
    "make_text",
]
