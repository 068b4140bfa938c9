"""Batch plans of whole runs, for the presets as they are."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from rag_jax.commands import plan as command
from rag_jax.config import EncoderConfig, MeshConfig, TrainConfig, WorldConfig, build
from rag_jax.data.packing import Microbatch
from rag_jax.planning import batches as planned
from rag_jax.planning.corpus import count_corpus
from rag_jax.planning.drawing import draw_run, format_batches
from rag_jax.planning.lengths import read_lengths
from rag_jax.planning.slices import read_slice
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import open_room

CONFIGS = Path(__file__).parents[2] / "configs"
QUESTIONS, PASSAGES = 3000, 21_015_324


def load_presets(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PRESETS


def draw(system, config, topology):
    room = open_room(system, "batches")
    numbers = {"questions": QUESTIONS, "passages": PASSAGES}
    corpus = count_corpus(config, read_lengths(), room.list_counts(config), **numbers)
    sizes = open_room(system, "session").Session.batch_sizes
    return draw_run(room, config, sizes, read_slice(topology), corpus).stages


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(planned, "STEPS", 8)


@pytest.mark.parametrize(
    ("system", "preset", "topology", "model"),
    [
        ("srrag", "llama2-7b", "v5e:8x8", 4),
        ("rag", "bart-large", "v5e:4x4", 1),
        ("self_retrieval", "stablelm-3b", "v5e:8x8", 4),
        ("prag", "llama3-8b", "v5e:4x4", 1),
        ("prag", "qwen2.5-1.5b-2wiki", "v5e:4x4", 1),
    ],
)
def test_most_of_what_a_preset_computes_is_useful(system, preset, topology, model):
    config = replace(load_presets(system)[preset], mesh=MeshConfig(model=model))
    stages = draw(system, config, topology)
    trained = [stages[name] for name in stages if name not in ("index", "labels", "retrieve")]
    assert trained
    for stage in trained:
        assert stage.useful > 0.78 and len(stage.runs) <= 6, (stage.stage, stage.runs)
        assert all(shape.rows % 16 == 0 for shape in stage.runs)


def test_a_contrastive_training_has_one_program():
    """Its chunks have widths of their own, whatever the batch."""
    trained, index = draw("dpr", load_presets("dpr")["bert-base"], "v5e:4x4").values()
    assert list(trained.runs) == [("pairs", 256, 256)] and 0.75 < trained.useful < 0.9
    assert trained.runs[("pairs", 256, 256)] == trained.steps == 40 * 24
    assert index.useful > 0.9 and sum(index.runs.values()) == pytest.approx(index.steps, abs=1)


def test_one_cpu_without_a_slice():
    stages = draw("srrag", load_presets("srrag")[""], None)
    assert list(stages) == ["index", "labels", "stage1", "reference", "stage2"]
    assert all(shape.rows == 1 for name in ("stage1", "stage2") for shape in stages[name].runs)
    text = format_batches(stages.values())
    assert "stage2, pairs" in text and "useful" in text


def test_all_steps_stand_for_themselves_and_some_for_all():
    micros = [Microbatch([[0]], 2, 8, "a"), Microbatch([[0]], 4, 8, "b")]
    steps = [(20, micros), (28, micros[:1])]
    settings = TrainConfig(epochs=3, batch_size=5)
    found = planned.count_steps("x", settings, 100, steps)
    assert (found.steps, found.drawn, found.useful) == (60, 2, 48 / (16 + 32 + 16))
    assert found.runs == {("a", 2, 8): 60, ("b", 4, 8): 30}
    drawn, scaled = planned.choose_drawn(settings, 1000)
    assert (drawn, scaled.epochs, scaled.batch_size) == (40, 75, 5)
    assert planned.choose_drawn(settings, 30) == (30, settings)


def test_a_corpus_is_encoded_in_pieces():
    settings = EncoderConfig(batch_size=64, max_length=32, program_tokens=10**6)
    found = planned.count_encoding("index", settings, 1500, lambda n: [40] * n)
    assert found.runs == {("passages", 32, 32): 47} and found.steps == 47
    assert found.useful == 1500 / (47 * 32)


def test_numbers_are_those_of_the_data():
    world = WorldConfig(cities=4, countries=3, train=6, dev=0, test=5)
    config = replace(load_presets("prag")[""], world=world)
    room = open_room("prag", "batches")
    read = count_corpus(config, read_lengths(), room.list_counts(config))
    assert (read.trained, read.asked, read.passages) == (6, 5, 20)
    few = replace(config, questions=7)
    given = {"questions": 50, "passages": 9}
    read = count_corpus(few, read_lengths(), room.list_counts(few), **given)
    assert (read.trained, read.asked, read.passages) == (50, 7, 9)
    with pytest.raises(RagJaxError, match="--questions=0: must be at least 1"):
        count_corpus(config, read_lengths(), {}, questions=0)


@pytest.mark.filterwarnings("ignore:the load_module")
def test_the_command_prints_the_batches(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    arguments = ["--config=configs/prag.py", "--batches", "--questions=20", "--passages=90"]
    command.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu: 1 device(s), mesh 1 data by 1 model; 20 questions to train on")
    assert any(line.startswith("encode, documents") for line in lines)
    for wrong, message in (
        ("--only=train", "--only and --batches: with batches nothing is compiled"),
        ("--topology=v5x:8x8", "--topology=v5x:8x8: no such slice"),
        ("--questions=many", "--questions=many: must be a whole number"),
        ("--lengths=missing.json", "missing.json is missing"),
        ("--config.mesh.model=2", "config.mesh.data=-1 by config.mesh.model=2 does not fit 1"),
    ):
        with pytest.raises(RagJaxError, match=message.replace("(", r"\(")):
            command.main([*arguments, wrong])
    assert jax.default_backend() == "cpu"
    assert build(open_room("prag", "pipeline").CONFIG, {}).system == "prag"
