"""Settings of a comparison: shared once, put into every system's, and refused beside it."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from rag_jax.commands.compare import describe
from rag_jax.comparison.config import (
    SYSTEMS,
    CompareConfig,
    list_changes,
    list_shared,
    read_config,
    to_plain,
    to_shared_dict,
)
from rag_jax.config import EncoderConfig, ModelConfig, WorldConfig, build, to_config_dict
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import open_room

FILE = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "compare.py"))


def test_the_config_file_is_a_comparison():
    for preset, wanted in FILE["PRESETS"].items():
        assert read_config(FILE["get_config"](preset)) == wanted
    with pytest.raises(RagJaxError, match="preset 'x'"):
        FILE["get_config"]("x")


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_shared_is_put_into_every_system(system, tmp_path):
    changed = CompareConfig(
        seed=7,
        evaluate_on="dev",
        questions=5,
        train_questions=6,
        model=ModelConfig(name="m", int8=True),
        encoder=EncoderConfig(name="e", max_length=9, batch_size=8),
        world=WorldConfig(cities=2),
    )
    settings = changed.settings(system, tmp_path)
    session = open_room(system, "session").Session
    model, encoding = getattr(settings, session.model_field), settings
    for name in session.encoder_field.split("."):
        encoding = getattr(encoding, name)
    assert (model.name, model.int8) == ("m", True)
    assert (encoding.name, encoding.max_length, encoding.batch_size) == ("e", 9, 8)
    assert (settings.seed, settings.evaluate_on) == (7, "dev")
    assert settings.data.path == str(tmp_path) and settings.data.held_out == 0
    # All of the questions that were chosen, whatever the system's own number is.
    counts = {*filter(None, (session.train_count, session.question_count))} - {"warm_up.questions"}
    assert counts <= {*list_shared(system)}
    # Everything else stays as it was.
    own = type(settings)()
    assert settings.tuning == own.tuning and settings.system == system


def test_what_is_shared_is_there_once():
    values = to_shared_dict(CompareConfig())
    for system in SYSTEMS:
        assert not {"system", "seed", "data", "world", "mesh", "questions"} & {*values[system]}
    assert {*values.rag.generator} == {"max_length", "chat"}
    assert {*values.prag.retrieve} == {"by", "fusion", "passages", "rerank"}
    text = describe(values)
    assert text.count("the built-in world.") == 1 and text.count("batch_size=64\n") == 1
    assert "--config.prag.encode.learning_rate=" in text and "config.prag.seed" not in text


@pytest.mark.parametrize("path", ["rag.world.cities", "prag.questions", "srrag.encoder.name"])
def test_a_shared_setting_within_a_system_is_refused(path):
    values = to_shared_dict(CompareConfig()).unlock()
    system, nested = path.split(".")[0], 1
    for step in reversed(path.split(".")):
        nested = {step: nested}
    values.update(nested)
    with pytest.raises(RagJaxError, match=rf"config\.{system}\.\S+: all systems share it; set"):
        read_config(values)


@pytest.mark.parametrize("systems", [(), ("rag", "rag"), ("dpr",), ("x",)])
def test_systems_that_cannot_be_compared(systems):
    values = to_config_dict(CompareConfig())
    with values.ignore_type():
        values.systems = systems
    with pytest.raises(RagJaxError, match=r"config\.systems.*must be one .*srrag.*rag"):
        build(CompareConfig, values)


def test_settings_that_change_a_finished_comparison():
    config = CompareConfig()
    before = to_plain(config)
    assert list(list_changes(before, config)) == []
    assert list(list_changes(before, replace(config, systems=("rag",), reference="x"))) == []
    assert list(list_changes(before, replace(config, track="tensorboard"))) == []
    changed = replace(config, questions=5, rag=replace(config.rag, passages=9))
    assert list(list_changes(before, changed)) == [
        "config.questions: 40 -> 5",
        "config.rag.passages: 3 -> 9",
    ]
