"""Prefill and decode over an explicit key/value cache."""

from rag_jax.decoding.beams import BeamConfig, Beams, beam_search, search_beams
from rag_jax.decoding.cache import Cache, append, encode_source, fork, init_cache
from rag_jax.decoding.generate import generate, prefill, read_prompts
from rag_jax.decoding.sample import Decoded, Sampling, decode
from rag_jax.decoding.stream import stream
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.decoding.trie_beams import FoundSequence, TrieBeams, search_trie, trie_search

__all__ = [
    "BeamConfig",
    "Beams",
    "Cache",
    "Decoded",
    "FoundSequence",
    "Sampling",
    "Trie",
    "TrieArrays",
    "TrieBeams",
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
    "search_trie",
    "stream",
    "trie_search",
]
