"""Dense passage retrieval on the built-in encyclopedia, with all-MiniLM-L6-v2 on both sides.

    python launch/train.py --config=configs/dpr.py
    python launch/ask.py --config=configs/dpr.py "QUESTION"    # after the training

Cost: 4 minutes on two CPU cores; 3 GB of memory; 84 MB of downloads.

Score, 300 test questions, 5,877 passages, answer in the first passage and nDCG@10: BM25 0.073 and
0.517, encoder off the shelf 0.200 and 0.630, trained 0.997 and 0.991.

On SciFact, published data in BEIR's format (table in `docs/systems/dpr.md`):

    python launch/train.py --config=configs/dpr.py --config.data.path=scifact \
        --config.encoder.max_length=256 --config.train.learning_rate=2e-5 --config.train.epochs=2

`:bert-base` is the recipe that DPR's authors (Karpukhin et al. 2020) published for Natural
Questions, from google-bert/bert-base-uncased, without its dropout of 0.1: one of a question's 30
hard negatives, drawn anew each epoch, the first relevant passage, and of the last ten epochs the
best by average rank on the dev questions, which the data must have.
"""

import dataclasses

import ml_collections

from rag_jax.config import ContrastiveConfig, choose_preset, to_config_dict
from rag_jax.systems.dpr.config import (
    DPRConfig,
    DPREncoderConfig,
    NegativesConfig,
    ValidationConfig,
)

PRESETS = {
    "": DPRConfig(),
    "bert-base": dataclasses.replace(
        DPRConfig(),
        encoder=DPREncoderConfig(
            name="google-bert/bert-base-uncased",
            max_length=256,
            batch_size=1024,
            shared=False,
            pooling="cls",
        ),
        positives="first",
        negatives=NegativesConfig(kept=30),
        validation=ValidationConfig(after=30),
        train=ContrastiveConfig(
            epochs=40,
            batch_size=128,
            learning_rate=2e-5,
            # 1,237 of the 40 times 460 steps that its 58,880 training questions take.
            warmup_fraction=1237 / 18_400,
            microbatch_tokens=16_384,
            scale=1.0,
            scan_layers=True,
        ),
    ),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
