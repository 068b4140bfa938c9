"""Retrieval: encoders of texts, indices of several kinds, hard negatives, contrastive training."""

from rag_jax.data.passages import fingerprint_corpus
from rag_jax.retrieval.bm25 import BM25
from rag_jax.retrieval.encode import embed, encode_texts
from rag_jax.retrieval.fusion import Fused
from rag_jax.retrieval.index import Index
from rag_jax.retrieval.rerank import Reranked, rerank, score_pairs
from rag_jax.retrieval.searcher import Dense, LateInteraction, Searcher, Sparse
from rag_jax.retrieval.sparse import encode_sparse
from rag_jax.retrieval.sparse_index import SparseIndex
from rag_jax.retrieval.texts import list_texts, make_text
from rag_jax.retrieval.token_index import TokenIndex
from rag_jax.retrieval.token_vectors import TokenVectors, encode_tokens

__all__ = [
    "BM25",
    "Dense",
    "Fused",
    "Index",
    "LateInteraction",
    "Reranked",
    "Searcher",
    "Sparse",
    "SparseIndex",
    "TokenIndex",
    "TokenVectors",
    "embed",
    "encode_sparse",
    "encode_texts",
    "encode_tokens",
    "fingerprint_corpus",
    "list_texts",
    "make_text",
    "rerank",
    "score_pairs",
]
