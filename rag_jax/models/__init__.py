"""Models, their weights and their tokenizers."""

from rag_jax.models.io.load import Pretrained, load
from rag_jax.models.io.save import save

__all__ = ["Pretrained", "load", "save"]
