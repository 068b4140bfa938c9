"""Reading and writing text over an explicit key/value cache."""

from rag_jax.decoding.beams import BeamConfig, Beams
from rag_jax.decoding.cache import Cache, append, encode_source, fork, init_cache
from rag_jax.decoding.generate import generate
from rag_jax.decoding.lookup import decode_by_lookup
from rag_jax.decoding.prompts import prefill, read_prompts
from rag_jax.decoding.sample import Decoded, Sampling, decode
from rag_jax.decoding.score import score_continuation, score_text
from rag_jax.decoding.stream import stream
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.decoding.trie_beams import FoundSequence, TrieBeams, search_trie, trie_search
from rag_jax.decoding.vocabulary_beams import beam_search, search_beams

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
    "decode_by_lookup",
    "encode_source",
    "fork",
    "generate",
    "init_cache",
    "prefill",
    "read_prompts",
    "score_continuation",
    "score_text",
    "search_beams",
    "search_trie",
    "stream",
    "trie_search",
]
