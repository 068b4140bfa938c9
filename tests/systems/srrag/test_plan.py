"""The plan of the tiny run, compiled for a CPU that stands in for a slice."""

from dataclasses import replace

import jax
import pytest

from rag_jax.config import build
from rag_jax.models.int8 import is_quantized
from rag_jax.runtime import chips
from rag_jax.runtime.device_bytes import count_bytes_per_device
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag import plan as planned
from rag_jax.systems.srrag.config import SRRAGConfig
from systems.planned import CHIP, RERANKING, add_reranker, draw, list_programs, plan
from systems.srrag.tiny_run import quick_programs


@pytest.fixture
def settings(make_config, monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    return build(SRRAGConfig, make_config(**{"verbalise.max_tokens": 6}))


@pytest.mark.parametrize(("mode", "int8"), [("lora", False), ("full", False), ("lora", True)])
def test_the_planned_session_is_the_real_one(settings, session, mode, int8):
    """The same trees, shapes and losses as the run itself trains."""
    model, tuning = replace(settings.model, int8=int8), replace(settings.tuning, mode=mode)
    changed = replace(settings, model=model, tuning=tuning)
    abstract = planned.PlannedSession(changed, jax.devices()[:1])
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    real = type(session)(changed)
    assert is_quantized(real.base.params) == int8
    assert abstract.new_ids == session.new_ids
    assert abstract.base.config == session.base.config
    assert describe(abstract.base.params) == describe(real.base.params)
    assert describe(abstract.encoder.params) == describe(session.encoder.params)
    assert describe(abstract.trainable.abstract()) == describe(real.trainable.start())


def test_every_program_is_planned(settings, monkeypatch, tmp_path):
    """Every shape that was drawn, as often as it runs; all are compiled in the parity suite."""
    settings = add_reranker(settings, tmp_path)
    drawn = draw("srrag", settings)
    with quick_programs():
        programs = list_programs("srrag", settings, monkeypatch)
    for stage in ("index", "labels", "stage1", "stage2", "reference"):
        for shape, runs in drawn.stages[stage].runs.items():
            end = f"{shape.kind} {shape.rows} x {shape.width}"
            (found,) = (n for n in programs if n.startswith(stage) and n.endswith(end))
            assert programs[found] == {stage: runs}
    assert {shape.kind for shape in drawn.stages["stage2"].runs} == {"pairs", "rows"}
    assert programs["stage1, optimiser step"] == {"stage1": 5}
    assert programs["route"] == programs["read for answers"] == {"datastore": 5, "evaluate": 5}
    # From the model itself and from the index.
    assert programs["answer"] == {"evaluate": 10} and programs["vote"] == {"evaluate": 5}
    assert programs["write documents"] == {"demonstrations": 1, "contexts": 4}
    assert programs["one token of an answer"] == {}
    assert programs[RERANKING] == {"contexts": 2, "evaluate": 2}


def test_programs_are_counted(settings):
    noted, by_name = [], {}
    drawn = draw("srrag", settings)
    with quick_programs():
        for only in ("verbalis", "stage1, optimiser step", "route"):
            note = lambda program: noted.append(program.name)  # noqa: E731
            planner = plan("srrag", settings, drawn, only=only, note=note)
            by_name |= {program.name: program for program in planner.programs}
    assert list(by_name) == noted
    base = planned.PlannedSession(settings, jax.devices()[:1]).base
    weights = count_bytes_per_device(base.params)
    for name in ("route", "verbalise"):
        assert by_name[name].arguments > weights
        assert by_name[name].cost.flops > 0
    # While the passes run, the weights that the tuned ones came from are still there.
    assert by_name["route"].resident > weights
    # A loop is counted with all its turns.
    one, whole = by_name["one token of a verbalisation"], by_name["verbalise"]
    assert whole.cost.flops > 5 * one.cost.flops
    # Adam's two moments and the adapter.
    trained = planned.PlannedSession(settings, jax.devices()[:1]).trainable.abstract()
    step = by_name["stage1, optimiser step"]
    assert step.arguments >= 4 * count_bytes_per_device(trained)


def test_questions_that_are_demonstrations_are_a_small_batch_of_long_rows(settings):
    few = replace(settings, verbalise=replace(settings.verbalise, demonstrations=3))
    flops = []
    for config in (settings, few):
        (program,) = plan("srrag", config, only="one token of the second round").programs
        flops.append(program.cost.flops)
    assert flops[1] > 2 * flops[0]


def test_remedies_change_one_setting_each(settings):
    full = replace(settings, tuning=replace(settings.tuning, mode="full"))
    flags = dict(planned.list_remedies(full, "stage2, gradients of pairs 1 x 64"))
    assert list(flags) == [
        "--config.tuning.remat=full",
        "--config.stage2.microbatch_tokens=450",
        "--config.mesh.model=2",
        "--config.tuning.mode=lora",
    ]
    assert flags["--config.stage2.microbatch_tokens=450"].stage2.microbatch_tokens == 450
    flags = dict(planned.list_remedies(full, "stage2, optimiser step"))
    assert list(flags) == ["--config.mesh.model=2", "--config.tuning.mode=lora"]
    assert list(dict(planned.list_remedies(settings, "write documents"))) == [
        "--config.verbalise.batch_size=9",
        "--config.mesh.model=2",
    ]
    for name in (
        "index, embed passages 8 x 64",
        "labels, score contexts 4 x 64",
        "route",
        "read for answers",
        "answer",
    ):
        assert any("batch_size" in flag for flag, _ in planned.list_remedies(settings, name))


def test_a_model_of_unknown_sizes_is_named(settings):
    unknown = replace(settings, model=replace(settings.model, name="someone/some-model"))
    with pytest.raises(RagJaxError, match="sizes of 'someone/some-model' are not known.*Llama-2"):
        plan("srrag", unknown)


def test_an_encoder_is_no_language_model(settings):
    wrong = replace(settings, model=replace(settings.model, name="all-minilm-l6-v2"))
    with pytest.raises(RagJaxError, match="all-minilm-l6-v2: is no language model"):
        plan("srrag", wrong)
