"""Pretrained models: configs, weights and tokenizers, loaded from disk and saved."""

from rag_jax.models.io.load import Pretrained, load, load_tokenizer
from rag_jax.models.io.save import save

__all__ = ["Pretrained", "load", "load_tokenizer", "save"]
