"""Dense passage retrieval on the built-in encyclopedia, with all-MiniLM-L6-v2 on both sides.

    python launch/train.py --config=configs/dpr.py
    python launch/ask.py --config=configs/dpr.py "QUESTION"    # once it has ended

Cost: 11 minutes on two cores that other programs shared; 84 MB of downloads.

Score, 300 test questions, 5,877 passages, two of them a place talk pages that ask what the articles
answer; one epoch over 1,000 training questions: share with an answer in the first, and in the first
five passages, and mean reciprocal rank of passages about the place that state the answer: BM25
0.043, 0.830, 0.351; encoder off the shelf 0.200, 0.933, 0.524; trained 0.997, 0.997, 0.992.

Data of one's own, in any of the formats of `rag_jax/data/formats`, gzip or not:

    python launch/train.py --config=configs/dpr.py --config.data.path=scifact \
        --config.encoder.max_length=256 --config.train.learning_rate=2e-5 --config.train.epochs=2

SciFact, its 300 test questions over 5,183 abstracts: nDCG@10 0.665 by BM25, 0.648 by the encoder
off the shelf (published: 0.645), 0.692 trained; recall@100 0.886, 0.925, 0.953. 37 minutes on two
cores that other programs shared.

`:bert-base` is the recipe that DPR's authors (Karpukhin et al. 2020) published for Natural
Questions, from google-bert/bert-base-uncased, without its dropout of 0.1.
"""

import dataclasses

import ml_collections

from rag_jax.config import ContrastiveConfig, choose_preset, to_config_dict
from rag_jax.systems.dpr.config import DPRConfig, DPREncoderConfig, NegativesConfig

PRESETS = {
    "": DPRConfig(),
    "bert-base": dataclasses.replace(
        DPRConfig(),
        encoder=DPREncoderConfig(
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
