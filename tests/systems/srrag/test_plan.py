"""The plan of the tiny run, compiled for a CPU that stands in for a slice."""

from dataclasses import replace

import jax
import pytest

from rag_jax.config import build
from rag_jax.models.int8 import is_quantized
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_bytes_per_device
from rag_jax.systems.srrag import plan as planned
from rag_jax.systems.srrag.config import SRRAGConfig
from systems.srrag.tiny_run import quick_programs

CHIP = chips.Chip(flops=1e12, bandwidth=1e11, memory=1e12, links=1e11)


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


def test_programs_are_planned(settings):
    """Some of each kind: all are compiled in the parity suite, for a TPU."""
    noted, by_name = [], {}
    with quick_programs():
        for only in ("verbalis", "searched rows", "optimiser step", "route"):
            planner = planned.plan(
                settings,
                jax.devices()[:1],
                only=only,
                note=lambda program: noted.append(program.name),
            )
            by_name |= {program.name: program for program in planner.programs}
    assert list(by_name) == noted
    base = planned.PlannedSession(settings, jax.devices()[:1]).base
    weights = count_bytes_per_device(base.params)
    for name in ("route", "verbalise", "stage 1, gradients of searched rows"):
        assert by_name[name].arguments > weights
        assert by_name[name].cost.flops > 0
    # While the passes run, the weights that the tuned ones came from are still there.
    assert by_name["route"].resident > weights
    # A loop is counted with all its turns.
    one, whole = by_name["one token of a verbalisation"], by_name["verbalise"]
    assert whole.cost.flops > 5 * one.cost.flops
    # Adam's two moments and the adapter.
    trained = planned.PlannedSession(settings, jax.devices()[:1]).trainable.abstract()
    step = by_name["optimiser step"]
    assert step.arguments >= 4 * count_bytes_per_device(trained)


def test_questions_that_are_demonstrations_are_a_small_batch_of_long_rows(settings):
    few = replace(settings, verbalise=replace(settings.verbalise, demonstrations=3))
    found = {}
    for config in (settings, few):
        planner = planned.plan(config, jax.devices()[:1], only="second round")
        names = {program.name: program.cost.flops for program in planner.programs}
        assert set(names) == {"second round of shown questions", "one token of the second round"}
        found[config.verbalise.demonstrations] = names["second round of shown questions"]
    assert found[3] > 4 * found[1]


def test_remedies_change_one_setting_each(settings):
    full = replace(settings, tuning=replace(settings.tuning, mode="full"))
    flags = dict(planned.list_remedies(full, "stage 2, gradients of pairs"))
    assert list(flags) == [
        "--config.tuning.remat=full",
        "--config.stage2.microbatch_tokens=450",
        "--config.mesh.model=2",
        "--config.tuning.mode=lora",
    ]
    assert flags["--config.stage2.microbatch_tokens=450"].stage2.microbatch_tokens == 450
    assert list(dict(planned.list_remedies(settings, "write documents"))) == [
        "--config.verbalise.batch_size=9",
        "--config.mesh.model=2",
    ]
    for name in ("embed passages", "score contexts", "route", "read for answers", "answer"):
        assert any("batch_size" in flag for flag, _ in planned.list_remedies(settings, name))


def test_a_model_of_unknown_sizes_is_named(settings):
    unknown = replace(settings, model=replace(settings.model, name="someone/some-model"))
    with pytest.raises(RagJaxError, match="sizes of 'someone/some-model' are not known.*Llama-2"):
        planned.plan(unknown, jax.devices()[:1])


def test_an_encoder_is_no_language_model(settings):
    wrong = replace(settings, model=replace(settings.model, name="all-minilm-l6-v2"))
    with pytest.raises(RagJaxError, match="all-minilm-l6-v2: is no language model"):
        planned.plan(wrong, jax.devices()[:1])
