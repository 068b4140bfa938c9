"""Parametric RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/prag.py

Presets `llama3.2-1b`, `qwen2.5-1.5b` and `llama3-8b` are the paper's recipe: documents augmented by
the model itself, adapters of rank 2 on the FFN's kernels, five steps of one example at 3e-4, three
documents a question, found by BM25.

    python launch/train.py --config=configs/prag.py:llama3.2-1b --config.data.path=FOLDER
"""

import ml_collections

from rag_jax.config import choose_preset, to_config_dict
from rag_jax.systems.prag.config import (
    AnswerConfig,
    AugmentConfig,
    EncodeConfig,
    PRAGConfig,
    ReaderConfig,
    RetrieveConfig,
)


def _follow_paper(name: str) -> PRAGConfig:
    """The paper's recipe for a model. What is trained and answered together is ours."""
    return PRAGConfig(
        model=ReaderConfig(name=name, chat=True),
        retrieve=RetrieveConfig(by="bm25", passages=3),
        augment=AugmentConfig(by="model", batch_size=64),
        encode=EncodeConfig(epochs=1, learning_rate=3e-4, together=64),
        answer=AnswerConfig(max_tokens=20, batch_size=64),
    )


PRESETS = {
    "": PRAGConfig(
        model=ReaderConfig(chat=True),
        retrieve=RetrieveConfig(passages=1),
        encode=EncodeConfig(learning_rate=2.5e-3),
    ),
    "llama3.2-1b": _follow_paper("meta-llama/Llama-3.2-1B-Instruct"),
    "qwen2.5-1.5b": _follow_paper("Qwen/Qwen2.5-1.5B-Instruct"),
    "llama3-8b": _follow_paper("meta-llama/Meta-Llama-3-8B-Instruct"),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
