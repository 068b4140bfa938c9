"""The plan of a tiny run, compiled for a CPU that stands in for a slice."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.config import ContrastiveConfig
from rag_jax.models import load_reranker
from rag_jax.models.io.sentence import Sentence, write_sentence
from rag_jax.models.io.sizes import (
    describe_params,
    find_decoder,
    find_encoder,
    find_pooling,
    find_sizes,
)
from rag_jax.models.nn.pooling import Dense, Pooling
from rag_jax.runtime import chips
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.dpr import plan as planned
from rag_jax.systems.dpr import session as sessions
from rag_jax.systems.dpr.config import DPRConfig, DPREncoderConfig
from systems.planned import CHIP, RERANKING, add_reranker, draw, list_programs, plan


@pytest.fixture
def config(bert_folder, monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    encoder = DPREncoderConfig(name=str(bert_folder), max_length=32, shared=False, pooling="cls")
    return DPRConfig(encoder=encoder, train=ContrastiveConfig(batch_size=8, microbatch_tokens=256))


def test_the_planned_session_is_the_real_one(config):
    real, abstract = sessions.Session(config), planned.PlannedSession(config, jax.devices()[:1])
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(abstract.untrained.params()) == describe(real.untrained.params())
    assert abstract.untrained.question.config == real.untrained.question.config


def test_every_program_is_planned(config, monkeypatch, tmp_path):
    config = add_reranker(config, tmp_path)
    (index,) = draw("dpr", config).stages["index"].runs
    assert list_programs("dpr", config, monkeypatch) == {
        "train, gradients of pairs 16 x 32": {"train": 3},
        "train, optimiser step": {"train": 3},
        f"index, embed passages {index.rows} x 32": {"index": 2},
        "evaluate, embed questions 32 x 32": {"evaluate": 1},
        RERANKING: {"evaluate": 2},
    }


def test_a_reranker_is_counted(config, tmp_path):
    (program,) = plan("dpr", add_reranker(config, tmp_path), only=RERANKING).programs
    reranker = load_reranker(tmp_path / "reranker")
    assert program.arguments == count_bytes_per_device(reranker.base.params) + 64 * (48 + 1) * 4
    assert program.cost.flops > 0


def test_programs_are_counted(config):
    planner = plan("dpr", config, only="embed passages")
    (program,) = planner.programs
    session = planned.PlannedSession(config, jax.devices()[:1])
    assert program.arguments > count_bytes_per_device(session.untrained.passage.params)
    assert program.cost.flops > 0 and program.runs == {"index": 2}


def test_remedies_change_one_setting_each(config):
    flags = dict(planned.list_remedies(config, "train, gradients of pairs 16 x 32"))
    assert list(flags) == [
        "--config.train.microbatch_tokens=128",
        "--config.train.batch_size=4",
        "--config.mesh.model=2",
    ]


def test_a_language_model_is_no_encoder(config, llama_folder):
    wrong = replace(config, encoder=replace(config.encoder, name=str(llama_folder)))
    with pytest.raises(RagJaxError, match="config.encoder.name=.*: is no encoder"):
        plan("dpr", wrong)


def test_a_decoder_that_embeds_is_planned(config, llama_folder, tmp_path):
    """By its shapes and the files that say how it embeds, dense layers included."""
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    width = find_sizes(str(folder)).hidden_size
    dense = Dense("dense_0", width, 8, bias=True, activation="Tanh")
    params = {"dense_0": {"kernel": np.zeros((width, 8)), "bias": np.zeros(8)}}
    write_sentence(folder, Pooling(steps=(dense,)), Sentence(), params, width=width)
    encoder = replace(config.encoder, name=str(folder), shared=True, pooling="files")
    changed = replace(config, encoder=encoder)
    (program,) = plan("dpr", changed, only="embed passages").programs
    session = planned.PlannedSession(changed, jax.devices()[:1])
    assert session.encoder.model.embedding_size == 8
    assert session.encoder.params["dense_0"]["kernel"].shape == (width, 8)
    assert program.arguments > count_bytes_per_device(session.encoder.params)


@pytest.mark.parametrize(
    ("name", "count"),
    [("Qwen/Qwen3-Embedding-0.6B", 595_776_512), ("google/embeddinggemma-300m", 307_581_696)],
)
def test_published_decoders_that_embed(name, count):
    pooling, sizes = find_pooling(name), find_encoder("encoder.name", name)
    tree = describe_params(sizes, jnp.float32, pooling.dense)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == count


def test_a_bidirectional_encoder_is_no_language_model():
    with pytest.raises(RagJaxError, match="config.model.name=.*: is no language model"):
        find_decoder("model.name", "google/embeddinggemma-300m")
