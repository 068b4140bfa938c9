"""Dense passage retrieval on the built-in encyclopedia, with all-MiniLM-L6-v2 on both sides.

    python launch/train.py --config=configs/dpr.py

Cost: 5.3 minutes of CPU time, on two cores that other programs shared; 84 MB of downloads.

Score, 200 development questions (`--config.evaluate_on=dev`), 3,345 passages, one epoch over 1,000
training questions: share with an answer in the first, and in the first five passages, and mean
reciprocal rank of the gold passage: BM25 0.890, 0.980, 0.812; encoder off the shelf 0.945, 1.000,
0.875; trained 1.000, 1.000, 0.990. With 4,000 cities (8,945 passages) BM25 has 0.865, 0.975, 0.783.

Data of one's own, in BEIR's format or as JSON lines like SQuAD's (`rag_jax/data/formats.py`):

    python launch/train.py --config=configs/dpr.py --config.data.path=scifact \
        --config.encoder.max_length=256

`:bert-base` is the recipe that DPR's authors (Karpukhin et al. 2020) published for Natural
Questions, from google-bert/bert-base-uncased, without its dropout of 0.1.
"""

import dataclasses

import ml_collections

from rag_jax.config import ContrastiveConfig, choose_preset, to_config_dict
from rag_jax.systems.dpr.config import DPRConfig, NegativesConfig, RetrieverConfig

PRESETS = {
    "": DPRConfig(),
    "bert-base": dataclasses.replace(
        DPRConfig(),
        encoder=RetrieverConfig(
            name="google-bert/bert-base-uncased", max_length=256, shared=False, pooling="cls"
        ),
        negatives=NegativesConfig(kept=1),
        train=ContrastiveConfig(
            epochs=40,
            batch_size=128,
            learning_rate=2e-5,
            # 1,237 of the 40 times 460 steps that its 58,880 training questions take.
            warmup_fraction=1237 / 18_400,
            microbatch_tokens=16_384,
            scale=1.0,
        ),
    ),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
