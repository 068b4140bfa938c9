"""Four ways to give a model a corpus's knowledge, compared on the same corpus and questions.

    python launch/compare.py --config=configs/compare.py [--config.data.path=FOLDER]

SR-RAG, RAG, Self-Retrieval and Parametric RAG with their baselines: SmolLM2-135M-Instruct and
all-MiniLM-L6-v2, 40 questions, 40 to train on, 128 passages of the built-in encyclopedia without
talk pages. It takes 15 minutes of two cores, 4 of them compiling, and 3.4 GB. Forty questions show
differences of 0.3; ask more of your own text. Rows, costs, scores and rules are in
`docs/guides/compare.md`.
"""

import ml_collections

from rag_jax.comparison.config import CompareConfig, to_shared_dict
from rag_jax.config import choose_preset
from rag_jax.systems.prag.config import ChatReaderConfig, DocumentsConfig, EncodeConfig, PRAGConfig
from rag_jax.systems.self_retrieval.config import (
    ExamplesConfig,
    SearchConfig,
    SelfRetrievalConfig,
)
from rag_jax.systems.srrag.config import RouteConfig, SRRAGConfig

PRESETS = {
    "": CompareConfig(
        # The paper's threshold needs no development questions, which a folder may not have.
        srrag=SRRAGConfig(route=RouteConfig(tau=0.2)),
        self_retrieval=SelfRetrievalConfig(
            examples=ExamplesConfig(target="prefix", same=1, other=1),
            search=SearchConfig(over="all"),
        ),
        prag=PRAGConfig(
            model=ChatReaderConfig(chat=True),
            retrieve=DocumentsConfig(passages=1),
            readers=("bm25", "fused"),
            # Adapters are trained apart, so that fewer at once take memory alone.
            encode=EncodeConfig(learning_rate=2.5e-3, together=8),
        ),
    ),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small comparison, for two cores and 8 GiB, or of a preset."""
    return to_shared_dict(choose_preset(PRESETS, preset))
