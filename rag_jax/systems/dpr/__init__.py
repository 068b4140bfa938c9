"""Dense passage retrieval (Karpukhin et al. 2020, arXiv 2004.04906)."""
