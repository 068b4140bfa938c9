"""Self-Routing RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/srrag.py

Cost: 11 minutes on two CPU cores that reached 170 GFLOP/s of float32 matrix product, 1.8 of them
compiling; 5.0 GB of memory; 176 MB of downloads.

Score, 300 test questions, accuracy with 95 % interval (share of retrievals): direct 0.210 +- 0.046,
verbalise 0.517 +- 0.056 (0), retrieve 0.953 +- 0.024 (1), srrag 0.933 +- 0.029 (0.763).

Chosen on the development split (`--config.evaluate_on=dev`): `route.tau`, the least hundredth that
kept retrieval below 80 % of the questions; learning rates; batch sizes; the losses' reduction.
Where the paper leaves a choice open, `rag_jax/systems/srrag/config.py` names it.
"""

import ml_collections

from rag_jax.config import to_config_dict
from rag_jax.systems.srrag.config import SRRAGConfig


def get_config() -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB."""
    return to_config_dict(SRRAGConfig())
