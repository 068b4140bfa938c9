"""Prefill and decode over an explicit key/value cache."""

from rag_jax.decoding.beam import Found, Search, beam_search, search_beams
from rag_jax.decoding.cache import Cache, append, encode_source, fork, init_cache
from rag_jax.decoding.generate import Decoded, Sampling, decode, generate, prefill, read_prompts

__all__ = [
    "Cache",
    "Decoded",
    "Found",
    "Sampling",
    "Search",
    "append",
    "beam_search",
    "decode",
    "encode_source",
    "fork",
    "generate",
    "init_cache",
    "prefill",
    "read_prompts",
    "search_beams",
]
