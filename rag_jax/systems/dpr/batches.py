"""Batches that a run would train on, of examples drawn by their lengths."""

from collections.abc import Iterator

import numpy as np

from rag_jax.models.io.sizes import find_encoder
from rag_jax.planning.batches import Corpus, StageBatches, count_encoding
from rag_jax.planning.contrastive import count_pairs
from rag_jax.planning.stages import HostWork
from rag_jax.systems.dpr.config import DPRConfig


def list_heads(config: DPRConfig) -> dict[str, int]:
    """The number of attention heads of each model, by its setting."""
    return {"config.encoder.name": find_encoder("encoder.name", config.encoder.name).num_heads}


def list_counts(config: DPRConfig) -> dict[str, int]:
    """The largest numbers of questions that are trained on and evaluated; 0 for all."""
    del config
    return {"trained": 0, "asked": 0}


def list_host(config: DPRConfig, corpus: Corpus) -> Iterator[HostWork]:
    """What the host does: BM25 for hard negatives, where the data name none, and the index."""
    yield HostWork("negatives", "BM25: build", corpus.passages)
    yield HostWork("negatives", "BM25: search", corpus.trained * corpus.passages)
    if config.index.backend == "scann":
        yield HostWork("index", "ScaNN: build", corpus.passages)
        yield HostWork("evaluate", "ScaNN: search", corpus.asked * corpus.passages)


def list_batches(config: DPRConfig, corpus: Corpus) -> Iterator[StageBatches]:
    """The batches of the stages that are drawn: the training and the index."""
    c, rng = config, np.random.default_rng(config.seed)
    sizes = {"max_length": c.encoder.max_length, "kept": c.negatives.kept}
    yield count_pairs("train", c.train, corpus, **sizes, seed=c.seed)
    yield count_encoding(
        "index", c.encoder, corpus.passages, lambda n: corpus.lengths.draw("text", n, rng)
    )
