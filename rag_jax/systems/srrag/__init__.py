"""Self-Routing RAG (Wu et al. 2025, arXiv 2504.01018)."""
