"""Parametric RAG on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/prag.py
    python launch/ask.py --config=configs/prag.py "QUESTION"    # after the training

Cost: 8 to 19 minutes on two CPU cores, 1.2 of them compiling; 8.2 GB of memory; 176 MB of
downloads.

Score, 100 test questions, exact match with 95 % interval: direct 0.090 +- 0.057, in the context
0.390 +- 0.094, there with the augmentations 0.510 +- 0.096, in the parameters 0.690 +- 0.089, both
0.760 +- 0.083, random documents' parameters 0.360 +- 0.092. Another run had 0.840 for both.

Chosen on 20 to 30 development questions (`--config.evaluate_on=dev`), with an earlier version of
the rules that augment: the learning rate among 1e-3, 1.5e-3, 2.5e-3, 3e-3, 4e-3 and 6e-3, and one
document a question among one, two and three. The paper has 3e-4 and three documents, for models
eight times the size.

`--config.ablations=True` encodes the documents three more times, with as many optimiser steps.
Presets `llama3.2-1b`, `qwen2.5-1.5b` and `llama3-8b` are the paper's recipe for PopQA and
ComplexWebQuestions; with `-2wiki` or `-hotpot` after the name, answers are reasoned after worked
examples. All tables, 2WikiMultihopQA's among them, are in `docs/systems/prag.md`;
`benchmarks/systems.py` has their commands.
"""

from dataclasses import replace

import ml_collections

from rag_jax.config import MeshConfig, choose_preset, to_config_dict
from rag_jax.systems.prag.config import (
    AnswerConfig,
    AugmentConfig,
    ChatReaderConfig,
    DocumentsConfig,
    EncodeConfig,
    PRAGConfig,
    PromptConfig,
)


def _follow_paper(
    name: str, mesh: MeshConfig, answered: int, *, demonstrations: int = 0
) -> PRAGConfig:
    """The paper's recipe for a model. What is trained and answered together is ours.

    Args:
        answered: number of questions that are answered together.
        demonstrations: of reasoned answers; without any, answers are direct.
    """
    reasoning = demonstrations > 0
    return PRAGConfig(
        model=ChatReaderConfig(name=name, chat=True),
        mesh=mesh,
        prompt=PromptConfig(reasoning=reasoning, demonstrations=demonstrations),
        retrieve=DocumentsConfig(by="bm25", passages=3),
        augment=AugmentConfig(by="model", batch_size=64),
        # Examples with worked examples are up to 900 tokens long, without them 100 to 350.
        tuning=replace(
            PRAGConfig().tuning, scan_layers=True, remat="full" if reasoning else "none"
        ),
        encode=EncodeConfig(epochs=1, learning_rate=3e-4, together=16 if reasoning else 64),
        answer=AnswerConfig(max_tokens=128 if reasoning else 20, batch_size=answered),
    )


# Where the weights fit whole on every device, a decoded token collects none. 64 questions of 8B
# with passages, their augmentations and worked examples take 16.28 of a v5e's 15.75 GiB, 32 take
# 15.59.
_MODELS = {
    "llama3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", MeshConfig(weights="model"), 64),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", MeshConfig(weights="model"), 64),
    "llama3-8b": ("meta-llama/Meta-Llama-3-8B-Instruct", MeshConfig(), 32),
}
# PopQA and ComplexWebQuestions are asked directly, the other two with reasoning.
_DATA = {"": 0, "-2wiki": 8, "-hotpot": 11}
PRESETS = {
    "": PRAGConfig(
        model=ChatReaderConfig(chat=True),
        retrieve=DocumentsConfig(passages=1),
        encode=EncodeConfig(learning_rate=2.5e-3),
    ),
    **{
        f"{model}{data}": _follow_paper(*options, demonstrations=demonstrations)
        for model, options in _MODELS.items()
        for data, demonstrations in _DATA.items()
    },
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
