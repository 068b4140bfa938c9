"""Retrieval-augmented generation (Lewis et al. 2020, arXiv 2005.11401)."""
