"""Rehearsals: the settings that are changed, the models in miniature, and a whole one."""

import json
import runpy
from pathlib import Path

import pytest

from rag_jax.commands import rehearse as command
from rag_jax.commands.rehearse import describe_rehearsal
from rag_jax.config import build
from rag_jax.models import load
from rag_jax.models.io import miniature
from rag_jax.models.io.load import load_tokenizer
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.pipeline.command import find_preset
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import SYSTEMS, open_room
from rag_jax.systems.rehearsal import plan_rehearsal, rehearse

ROOT = Path(__file__).parents[2]
FILES = {name: runpy.run_path(str(ROOT / "configs" / f"{name}.py")) for name in SYSTEMS}
PRESETS = [(name, preset) for name, file in FILES.items() for preset in file["PRESETS"]]


@pytest.fixture
def tokenizers(monkeypatch, llama_folder, bert_folder):
    """Tokenizers of the tiny models, in place of those that are downloaded."""
    kinds = {DecoderConfig: llama_folder, BartConfig: llama_folder, BertConfig: bert_folder}
    monkeypatch.setattr(miniature, "TOKENIZERS", kinds)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_can_be_planned_at_any_scale(name, preset):
    config = FILES[name]["get_config"](preset)
    planned, changes = plan_rehearsal(config, scale=0.01, preset=preset)
    built = build(open_room(name, "pipeline").CONFIG, planned)
    assert built == build(type(built), planned) and "mesh.data" not in changes
    assert not any(path.endswith(("batch_size", "max_length", "passages")) for path in changes)
    whole, _ = plan_rehearsal(config, scale=1.0, preset=preset)
    assert planned.world.cities == -(-whole.world.cities // 100)
    # All models that are to be in miniature have sizes.
    paths = {"model", "generator", "retriever", "encoder"} & {*planned}
    assert all(find_sizes(planned[path].name).max_length for path in paths)


def test_a_preset_with_a_world_keeps_it_and_others_have_the_published_counts():
    plan = lambda name, preset: plan_rehearsal(  # noqa: E731
        FILES[name]["get_config"](preset), scale=0.1, preset=preset
    )
    config, changes = plan("srrag", "llama2-7b")
    assert changes["world.train"] == (50_000, 5_000) and changes["verbalise.pool"] == (2048, 205)
    assert changes["datastore.layer"] == (15, 2) and config.verbalise.batch_size == 256
    config, changes = plan("dpr", "bert-base")
    assert (config.world.cities, config.world.train, config.world.talk_pages) == (3300, 5000, 2)
    assert changes["train.epochs"] == (40, 1) and changes["validation.after"] == (30, 0)
    assert plan("prag", "llama3-8b")[1]["augment.by"] == ("model", "rules")
    assert plan("dpr", "")[0].world.cities == 120  # the small run's own 1,200


@pytest.mark.parametrize(
    "name", ["meta-llama/Llama-2-7b-chat-hf", "facebook/bart-large", "stabilityai/stablelm-3b-4e1t"]
)
def test_a_miniature_has_the_published_vocabulary(name, tokenizers, llama_folder, tmp_path):
    miniature.save_miniature(name, tmp_path / "model")
    found, given = load(tmp_path / "model"), load_tokenizer(llama_folder)
    assert found.config.vocab_size == found.tokenizer.vocab_size == find_sizes(name).vocab_size
    assert type(found.config) is type(find_sizes(name)) and found.config.hidden_size == 32
    text = "Riga is the capital of Latvia."
    assert found.tokenizer.encode(text) == given.encode(text)
    assert found.tokenizer.decode([found.config.vocab_size - 1])  # an id that no text has


def test_a_tokenizer_with_fewer_ids_writes_the_same_texts(tokenizers, llama_folder):
    given = load_tokenizer(llama_folder)
    fewer = miniature._resize(given, 400)
    text = "The official currency of Andorra is the euro."
    assert fewer.vocab_size == 400 and max(fewer.encode(text)) < 400
    assert len(fewer.encode(text)) > len(given.encode(text))
    assert fewer.decode(fewer.encode(text)) == text


@pytest.mark.parametrize("scale", ["0", "1.5", "-0.1", "nan", "tenth"])
def test_a_scale_that_is_none(scale):
    with pytest.raises(RagJaxError, match=f"--scale={scale}: must be a number above 0, and at"):
        command.main(["--config=dpr:bert-base", f"--scale={scale}"])


def test_the_preset_of_a_command_line():
    assert find_preset(["--config=configs/dpr.py:bert-base", "--config.seed=1"]) == "bert-base"
    assert find_preset(["--config=dpr"]) == ""


def test_a_rehearsal_measures_every_stage_and_goes_on(tokenizers, tmp_path):
    config = FILES["dpr"]["get_config"]("bert-base")
    config.encoder.max_length, config.train.batch_size = 24, 8
    planned, changes = plan_rehearsal(config, scale=0.001, preset="bert-base", steps=2)
    assert changes["validation.after"] == (30, None)
    planned.world.countries = 40
    first = rehearse(planned, tmp_path, steps=2)
    assert first["questions"] == {"train": 50, "dev": 7, "test": 4}
    assert len((tmp_path / "run/stages/train/log.jsonl").read_text().splitlines()) == 2
    by_name = {stage["name"]: stage for stage in first["stages"]}
    assert next(iter(by_name)) == "corpus" and by_name["train"]["cpu_seconds"] > 0
    corpus = by_name["corpus"]
    # The record that a stage ended is written after what is measured.
    assert 1.1 * corpus["written_bytes"] > corpus["kept_bytes"] > 100 * first["passages"]
    assert json.loads(json.dumps(first)) == first
    again = rehearse(planned, tmp_path, steps=2)
    assert all("cpu_seconds" not in stage for stage in again["stages"])
    table = describe_rehearsal(again).splitlines()
    assert table[0].startswith(f"{first['passages']:,} passages; questions: 50 train, 7 dev")
    assert table[-1].split()[0] == "evaluate" and "-" in table[-1].split()
