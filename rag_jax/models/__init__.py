"""Models, their weights and their tokenizers."""

from rag_jax.models.load import Pretrained, load
from rag_jax.models.save import save

__all__ = ["Pretrained", "load", "save"]
