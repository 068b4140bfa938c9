"""The plan of a tiny run, compiled for a CPU that stands in for a slice."""

from dataclasses import replace
from functools import partial

import jax
import pytest

from rag_jax.config import EncoderConfig, TuningConfig
from rag_jax.runtime import chips
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.prag import plan as planned
from rag_jax.systems.prag.config import (
    AnswerConfig,
    AugmentConfig,
    ChatReaderConfig,
    DocumentsConfig,
    EncodeConfig,
    PRAGConfig,
    TranslatorConfig,
)
from rag_jax.systems.prag.translator import init_translator, list_adapted
from systems.planned import CHIP, RERANKING, add_reranker, draw, list_programs, plan


@pytest.fixture
def config(llama_folder, bert_folder, monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    return PRAGConfig(
        model=ChatReaderConfig(name=str(llama_folder), max_text=24),
        retrieve=DocumentsConfig(passages=2, encoder=EncoderConfig(str(bert_folder), 32)),
        tuning=TuningConfig(rank=2, targets=r"ffn/(gate|up|down)"),
        encode=EncodeConfig(together=8, start="warm"),
        answer=AnswerConfig(max_tokens=4, batch_size=4),
    )


def test_every_program_is_planned(config, monkeypatch, tmp_path):
    config = add_reranker(config, tmp_path)
    drawn = draw("prag", config)
    programs = list_programs("prag", config, monkeypatch)
    for stage in ("retrieve", "warm_up", "encode"):
        for shape, runs in drawn.stages[stage].runs.items():
            end = f"{shape.kind} {shape.rows} x {shape.width}".lstrip()
            (found,) = (n for n in programs if n.startswith(stage) and n.endswith(end))
            assert programs[found] == {stage: runs}
    # Batches of the methods whose prompts have these texts.
    assert programs["evaluate, answer after nothing"] == {"evaluate": 3 * 5}
    assert programs["evaluate, answer after passages"] == {"evaluate": 2 * 5}
    assert programs["evaluate, answer after augmentations"] == {"evaluate": 5}
    assert programs[RERANKING] == {"retrieve": 2}
    assert not any(name.startswith("augment") for name in programs)
    asked = replace(config, augment=AugmentConfig(by="model", batch_size=8, max_tokens=16))
    programs = list_programs("prag", asked, monkeypatch)
    assert programs["augment, write"] == {"augment": 10}


def test_the_translator_is_planned(config, monkeypatch):
    """Twelve of the forty documents are not found by fourteen questions, two each."""
    taught = replace(config, translator=TranslatorConfig(documents=12, epochs=2, batch_size=8))
    drawn = draw("prag", taught, questions=14)
    programs = list_programs("prag", taught, monkeypatch, questions=14)
    assert drawn.stages["translator"].steps == 4
    for stage in ("translator_encode", "translator"):
        for shape, runs in drawn.stages[stage].runs.items():
            end = f"documents {shape.rows} x {shape.width}"
            (found,) = (n for n in programs if n.startswith(f"{stage},") and n.endswith(end))
            assert programs[found] == {stage: runs}
    assert programs["translator, optimiser step"] == {"translator": 4}
    assert programs["translate, read documents"] == {"translator": 3, "translate": 7}
    assert programs["translate, make adapters"] == {"translate": 7}
    answers = {"evaluate": 3 * 4, "evaluate_translated": 2 * 4}
    assert programs["evaluate, answer after nothing"] == answers
    assert programs["evaluate, answer after augmentations"] == {"evaluate": 4}
    asked = replace(taught, augment=AugmentConfig(by="model", batch_size=8, max_tokens=16))
    programs = list_programs("prag", asked, monkeypatch, questions=14)
    assert programs["augment, write"] == {"augment": 8, "translator_augment": 4}
    found_all = draw("prag", taught, questions=20).stages
    assert "translator" not in found_all and "translator_encode" not in found_all


def test_the_translator_and_its_documents_are_counted(config):
    taught = replace(config, translator=TranslatorConfig(documents=12))
    drawn = draw("prag", taught, questions=14)
    programs = plan("prag", taught, drawn, only="transl").programs
    names = {program.name: program for program in programs}
    training = next(p for name, p in names.items() if name.startswith("translator, gradients"))
    session = planned.PlannedSession(taught, jax.devices()[:1])
    sizes = {"state_size": session.base.config.hidden_size, "hidden": taught.translator.hidden}
    kernels = list_adapted(session.adapter_shapes)
    params = jax.eval_shape(partial(init_translator, kernels=kernels, **sizes), jax.random.key(0))
    weights = count_bytes_per_device(session.base.params)
    # The translator, its gradients, and the optimiser's two moments.
    assert training.needed > weights + 4 * count_bytes_per_device(params)
    assert training.cost.flops > names["translate, read documents"].cost.flops > 0


def test_trainings_pass_over_layers_as_a_runs_do(config, monkeypatch):
    models = []

    def note(make):
        return lambda model, trainable: models.append(model) or make(model, trainable)

    for name in ("make_document_loss", "make_warm_up_loss"):
        monkeypatch.setattr(planned, name, note(getattr(planned, name)))
    scanned = replace(config, tuning=replace(config.tuning, scan_layers=True, remat="full"))
    list_programs("prag", scanned, monkeypatch)
    assert [(model.scan_layers, model.remat) for model in models] == 2 * [(True, "full")]


def test_a_bank_is_counted(config):
    drawn = draw("prag", config)
    shape = next(iter(drawn.stages["encode"].runs))
    only = f"documents {shape.rows} x {shape.width}"
    (program,) = plan("prag", config, drawn, only=only).programs
    session = planned.PlannedSession(config, jax.devices()[:1])
    weights = count_bytes_per_device(session.base.params)
    bank = count_bytes_per_device(session.describe_bank(shape.rows))
    # The adapters, and the optimiser's two moments.
    assert program.arguments > weights + 3 * bank and program.cost.flops > 0


def test_remedies_change_one_setting_each(config):
    def list_flags(name):
        return [flag for flag, _ in planned.list_remedies(config, name)]

    assert list_flags("encode, a step of documents 8 x 64") == [
        "--config.tuning.remat=full",
        "--config.encode.together=4",
        "--config.mesh.model=2",
    ]
    assert list_flags("evaluate, answer after passages")[0] == "--config.answer.batch_size=2"
    assert list_flags("retrieve, embed passages 8 x 32") == [
        "--config.retrieve.encoder.batch_size=32",
        "--config.mesh.model=2",
    ]


def test_an_encoder_is_no_language_model(config, bert_folder):
    wrong = replace(config, model=replace(config.model, name=str(bert_folder)))
    with pytest.raises(RagJaxError, match="config.model.name=.*: is no language model"):
        plan("prag", wrong)
