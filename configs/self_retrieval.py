"""Self-Retrieval on the built-in encyclopedia, with SmolLM2-135M-Instruct.

    python launch/train.py --config=configs/self_retrieval.py

Cost: 753 s on two CPU cores that reached 152 GFLOP/s of float32 matrix product, 178 of them
compiling; 4.6 GB of memory; 176 MB of downloads. `--config.ablations=True` trains two more models
and takes twice as long.

Score, 100 test questions, hits@1 with 95 % interval, hits@5, MRR@5 and exact match of the answer:
BM25 0.160 +- 0.072, 0.700, 0.374, 0.530; the dense encoder as it was 0.530 +- 0.096, 1.000, 0.746,
0.860; trained on the same 100 questions 0.950 +- 0.045, 1.000, 0.975, 0.940; Self-Retrieval 0.930
+- 0.052, 0.990, 0.958, 0.890; without self-assessment 0.230 +- 0.082, 0.990, 0.565, 0.590; without
indexing 0.770 +- 0.082, 0.990, 0.854, 0.850; without titles 0.350 +- 0.092, 1.000, 0.608, 0.520.

`search.over` was chosen on 60 development questions (`--config.evaluate_on=dev`): with the released
code's softmax over the passages of one title hits@1 was 0.500 there, in a world of a hundred
countries, over all passages 0.933, for a title with a single passage, as talk pages have, has no other that its doubt could go to.
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
