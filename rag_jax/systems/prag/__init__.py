"""Parametric RAG (Su et al. 2025): every document is an adapter, merged in for one question."""
