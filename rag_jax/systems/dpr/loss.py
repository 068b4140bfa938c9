"""DPR's loss (Karpukhin et al. 2020, eq. 2): each question's passage against all of its batch's.

Self-Retrieval trains its dense baseline by the same loss, so the loss is in `retrieval`.
"""

from rag_jax.losses import in_batch_contrastive
from rag_jax.retrieval.contrastive import make_loss

__all__ = ["in_batch_contrastive", "make_loss"]
