"""The plan of a tiny run, compiled for a CPU that stands in for a slice."""

from dataclasses import replace

import jax
import pytest

from rag_jax.config import ContrastiveConfig, EncoderConfig, ReaderConfig, TrainConfig, TuningConfig
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.self_retrieval import plan as planned
from rag_jax.systems.self_retrieval.config import DenseConfig, SearchConfig, SelfRetrievalConfig
from systems.planned import CHIP, RERANKING, add_reranker, draw, list_programs, plan


@pytest.fixture
def config(llama_folder, bert_folder, monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    train = TrainConfig(batch_size=16, microbatch_tokens=512)
    return SelfRetrievalConfig(
        model=ReaderConfig(name=str(llama_folder), max_text=24),
        tuning=TuningConfig(rank=2),
        indexing=train,
        train=train,
        search=SearchConfig(max_answer=4),
        dense=DenseConfig(EncoderConfig(str(bert_folder), 32), ContrastiveConfig(batch_size=8)),
    )


def test_trainings_pass_over_layers_as_a_runs_do(config, monkeypatch):
    models, make = [], planned.make_loss
    note = lambda model, trainable: models.append(model) or make(model, trainable)  # noqa: E731
    monkeypatch.setattr(planned, "make_loss", note)
    scanned = replace(config, tuning=replace(config.tuning, scan_layers=True, remat="full"))
    list_programs("self_retrieval", scanned, monkeypatch)
    assert [(model.scan_layers, model.remat) for model in models] == [(True, "full")]


def test_every_program_is_planned(config, monkeypatch, tmp_path):
    config = add_reranker(config, tmp_path)
    drawn = draw("self_retrieval", config)
    programs = list_programs("self_retrieval", config, monkeypatch)
    assert list(drawn.stages) == ["indexing", "train", "dense"]
    for stage, batches in drawn.stages.items():
        for shape, runs in batches.runs.items():
            end = f"{shape.kind} {shape.rows} x {shape.width}".lstrip()
            assert programs[f"{stage}, gradients of {end}"] == {stage: runs}
        assert programs[f"{stage}, optimiser step"] == {stage: batches.steps}
    searched = "search titles", "search passages"
    for name in ("read questions", "read titles", *searched, "assess", "answer"):
        assert programs[f"evaluate, {name}"] == {"evaluate": 5}
    assert programs[RERANKING] == {"evaluate": 5}
    alone = replace(config, indexing=replace(config.indexing, epochs=0))
    assert list(draw("self_retrieval", alone).stages) == ["train", "dense"]


def test_a_search_is_counted_with_a_dozen_turns(config):
    one, whole = plan("self_retrieval", config, only="passages").programs
    assert one.name == "evaluate, one token of passages" and one.runs == {}
    assert whole.name == "evaluate, search passages" and whole.runs == {"evaluate": 5}
    assert whole.cost.flops > 11 * one.cost.flops > 0


def test_remedies_change_one_setting_each(config):
    def list_flags(name):
        return [flag for flag, _ in planned.list_remedies(config, name)]

    assert list_flags("train, gradients of 1 x 512") == [
        "--config.tuning.remat=full",
        "--config.train.microbatch_tokens=256",
        "--config.mesh.model=2",
    ]
    assert list_flags("evaluate, assess")[0] == "--config.search.batch_size=2"


def test_an_encoder_is_no_language_model(config, bert_folder):
    wrong = replace(config, model=replace(config.model, name=str(bert_folder)))
    with pytest.raises(RagJaxError, match="config.model.name=.*: is no language model"):
        plan("self_retrieval", wrong)
