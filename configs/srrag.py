"""Self-Routing RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

python launch/train.py --config=configs/srrag.py
"""

import ml_collections

from rag_jax.config import SRRAGConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    """The settings of the small run: two cores, 8 GiB, ten minutes at most after downloads."""
    return to_config_dict(SRRAGConfig())
