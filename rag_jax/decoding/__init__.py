"""Prefill and decode over an explicit key/value cache."""

from rag_jax.decoding.beams import Found, Search, beam_search, search_beams
from rag_jax.decoding.cache import Cache, append, encode_source, fork, init_cache
from rag_jax.decoding.generate import generate, prefill, read_prompts
from rag_jax.decoding.sample import Decoded, Sampling, decode
from rag_jax.decoding.stream import stream
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.decoding.trie_beams import FoundPaths, FoundSequence, search_trie, trie_search

__all__ = [
    "Cache",
    "Decoded",
    "Found",
    "FoundPaths",
    "FoundSequence",
    "Sampling",
    "Search",
    "Trie",
    "TrieArrays",
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
