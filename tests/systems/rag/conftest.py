"""Settings of a tiny run."""

import pytest

from rag_jax.config import to_config_dict
from rag_jax.systems.rag.config import RAGConfig

QUICK = {
    "passages": 2,
    "world.cities": 5,
    "world.train": 8,
    "world.dev": 3,
    "world.test": 6,
    "index.backend": "exact",
    "generator.max_length": 64,  # where most passages are cut: one width, few programs
    "retriever.max_length": 24,
    "tuning.rank": 2,
    "train.batch_size": 3,
    "train.learning_rate": 1e-2,
    "train.retriever_rate": 1.0,
    "train.checkpoint_every": 1,
    "train.microbatch_tokens": 200,
    "decode.max_tokens": 3,
    "decode.memory_questions": 5,
}


@pytest.fixture(scope="session")
def make_config(llama_folder, bert_folder):
    models = {"generator.name": str(llama_folder), "retriever.name": str(bert_folder)}

    def make(**changes):
        config = to_config_dict(RAGConfig())
        config.update_from_flattened_dict(QUICK | models | changes)
        return config

    return make
