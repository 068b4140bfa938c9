"""Retrieval-augmented generation on the built-in encyclopedia: SmolLM2-135M and all-MiniLM-L6-v2.

    python launch/train.py --config=configs/rag.py
    python launch/ask.py --config=configs/rag.py "QUESTION"    # after the training

Cost: 8 minutes on two CPU cores, 11 with `--config.ablations=True`, before there was the stage
`likelihood`; 4.7 GB of memory; 176 MB of downloads.

Score, 100 test questions, exact match with 95 % interval: no passages 0.450 +- 0.096, BM25 0.510
+- 0.096, retriever as it was 0.610 +- 0.094; trained together: RAG-Token 0.890 +- 0.062,
RAG-Sequence Fast 0.870 +- 0.066, Thorough 0.910 +- 0.057.

`train.retriever_rate` was chosen on 60 development questions (`--config.evaluate_on=dev`) among
0.05, 0.1 and 0.2 by their answer hits.

`--config.ablations=True` trains two more generators: with BM25's passages, and without any.

`:bart-large` is the paper's RAG-Sequence for question answering: BART-large, DPR's encoders trained
on several datasets, greedy decoding, 50 passages at test time, a training row for each answer. The
paper gives no optimiser settings; these are those of transformers' fine-tuning script, without its
dropout of 0.1. For RAG-Token add `--config.marginal=token --config.decode.passages=15`. The models
that transformers publishes as `rag-token-nq` and `rag-sequence-nq` have DPR's `single-nq` encoders
and 4 beams instead. All tables, SQuAD's among them, are in `docs/systems/rag.md`.
"""

import ml_collections

from rag_jax.config import MeshConfig, TuningConfig, choose_preset, to_config_dict
from rag_jax.systems.rag.config import (
    DecodeConfig,
    GeneratorConfig,
    JointTrainConfig,
    RAGConfig,
    RetrieverConfig,
)

PRESETS = {
    "": RAGConfig(),
    "bart-large": RAGConfig(
        passages=5,
        mesh=MeshConfig(weights="model"),  # whole on every device: a decoded token collects none
        generator=GeneratorConfig(name="facebook/bart-large", max_length=300),
        retriever=RetrieverConfig(
            name="facebook/dpr-question_encoder-multiset-base",
            passage_name="facebook/dpr-ctx_encoder-multiset-base",
            max_length=256,
            batch_size=1024,
            scale=1.0,
        ),
        tuning=TuningConfig(mode="full", scan_layers=True),
        train=JointTrainConfig(
            epochs=100,
            batch_size=64,
            learning_rate=3e-5,
            weight_decay=1e-3,
            warmup_fraction=500 / 123_700,  # of the steps with the paper's questions
            clip_norm=0.1,
            microbatch_tokens=32_768,
            # BART trains on ten times as many tokens a minute as a model of 7B.
            program_tokens=100_000_000,
            checkpoint_every=500,
            retriever_rate=1.0,
            smoothing=0.1,
            answers="all",
        ),
        decode=DecodeConfig(passages=50, max_tokens=48, batch_size=16),
    ),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The settings of the small run, for two cores and 8 GiB, or of a preset."""
    return to_config_dict(choose_preset(PRESETS, preset))
