"""Self-Retrieval on the built-in encyclopedia, with SmolLM2-135M-Instruct.

python launch/train.py --config=configs/self_retrieval.py
"""

import ml_collections

from rag_jax.config import StageConfig, TuningConfig, choose_preset, to_config_dict
from rag_jax.systems.self_retrieval.config import (
    ExamplesConfig,
    ReaderConfig,
    SearchConfig,
    SelfRetrievalConfig,
)


def _follow_paper(name: str) -> SelfRetrievalConfig:
    """The paper's recipe for a model: five titles, ten passages each, three epochs at 2e-5."""
    return SelfRetrievalConfig(
        ablations=True,
        model=ReaderConfig(name=name, dtype="bfloat16", vocab_multiple=128, max_text=512),
        examples=ExamplesConfig(sentences=3, same=5, other=5),
        tuning=TuningConfig(mode="full", remat="full"),
        train=StageConfig(
            epochs=3,
            batch_size=128,
            learning_rate=2e-5,
            warmup_fraction=0.03,
            microbatch_tokens=65_536,
            checkpoint_every=500,
        ),
        search=SearchConfig(titles=5, passages=10, batch_size=64),
    )


PRESETS = {
    "": SelfRetrievalConfig(
        examples=ExamplesConfig(target="prefix", same=1, other=1),
        search=SearchConfig(over="all"),
    ),
    "stablelm-3b": _follow_paper("stabilityai/stablelm-3b-4e1t"),
    "llama2-7b": _follow_paper("meta-llama/Llama-2-7b-hf"),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
