"""Self-Retrieval (Tang et al. 2024): one language model is index, retriever and reranker."""
