"""Retrieval-augmented generation on the built-in encyclopedia: SmolLM2-135M and all-MiniLM-L6-v2.

python launch/train.py --config=configs/rag.py
"""

import ml_collections

from rag_jax.config import to_config_dict
from rag_jax.systems.rag.config import RAGConfig


def get_config() -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB."""
    return to_config_dict(RAGConfig())
