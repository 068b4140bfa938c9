"""The compiled steps: embedding a batch of texts, and searching an exact index on the devices.

Every system that encodes a corpus runs the same two, so both are in `retrieval`.
"""

from rag_jax.retrieval.encode import embed_batch
from rag_jax.retrieval.exact import find_top

__all__ = ["embed_batch", "find_top"]
