"""The plan of a tiny run, compiled for a CPU that stands in for a slice."""

from dataclasses import replace

import jax
import pytest

from rag_jax.config import ContrastiveConfig
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_bytes_per_device
from rag_jax.systems.dpr import plan as planned
from rag_jax.systems.dpr import session as sessions
from rag_jax.systems.dpr.config import DPRConfig, DPREncoderConfig
from systems.planned import CHIP, draw, list_programs, plan


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


def test_every_program_is_planned(config, monkeypatch):
    (index,) = draw("dpr", config).stages["index"].runs
    assert list_programs("dpr", config, monkeypatch) == {
        "train, gradients of pairs 16 x 32": {"train": 3},
        "train, optimiser step": {"train": 3},
        f"index, embed passages {index.rows} x 32": {"index": 2},
        "evaluate, embed questions 32 x 32": {"evaluate": 1},
    }


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
