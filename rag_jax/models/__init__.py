"""Models, their weights and their tokenizers."""

from rag_jax.models.load import Pretrained, load

__all__ = ["Pretrained", "load"]
