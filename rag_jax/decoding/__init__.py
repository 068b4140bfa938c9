"""Prefill and decode over an explicit key/value cache."""

from rag_jax.decoding.cache import Cache, append, encode_source, init_cache
from rag_jax.decoding.generate import Decoded, Sampling, decode, generate, prefill

__all__ = [
    "Cache",
    "Decoded",
    "Sampling",
    "append",
    "decode",
    "encode_source",
    "generate",
    "init_cache",
    "prefill",
]
