"""Self-Routing RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/srrag.py

Cost: 15 minutes on two CPU cores that a test suite shared for half of that (140 to 210 GFLOP/s of
float32 matrix product), 2.3 of them compiling; 5.9 GB of memory (7.8 with `tuning.mode=full`);
176 MB of downloads.

Score, 300 test questions, accuracy with 95 % interval (share of retrievals): direct 0.267 +- 0.050,
verbalise 0.557 +- 0.056 (0), retrieve 0.923 +- 0.030 (1), srrag 0.873 +- 0.038 (0.813).

Chosen on the development split (`--config.evaluate_on=dev`): `route.tau`, the least of a grid that
kept retrieval below 80 % of the questions; learning rates; the reduction of the losses. Where the
paper leaves a choice open, `rag_jax/config.py` names it.
"""

import ml_collections

from rag_jax.config import SRRAGConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB."""
    return to_config_dict(SRRAGConfig())
