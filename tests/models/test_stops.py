"""A model stops at every token that its settings list."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rag_jax.models import load, load_tokenizer, save
from rag_jax.models.io.stops import read_stop_ids
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.runtime.errors import RagJaxError

LLAMA = Path(__file__).parents[1] / "golden" / "llama_tied"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(LLAMA, tmp_path / "model")


def write(folder, name, **fields):
    path = folder / name
    present = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(present | fields))


@pytest.mark.parametrize(("value", "stops"), [(7, (2, 7)), ([7, 2, 9], (2, 7, 9)), (None, (2,))])
def test_generation_config(value, stops, folder):
    write(folder, "generation_config.json", eos_token_id=value)
    write(folder, "config.json", eos_token_id=5)  # counts only without the other file
    lm = load(folder)
    assert (lm.tokenizer.eos_id, lm.tokenizer.stop_ids) == (2, stops)


def test_config_without_a_generation_config(folder):
    (folder / "generation_config.json").unlink()
    write(folder, "config.json", eos_token_id=[5, 2])
    assert load(folder).tokenizer.stop_ids == (2, 5)
    assert read_stop_ids(folder.parent) == ()


@pytest.mark.parametrize("value", ["</s>", [1, "</s>"], True, -1, [[1]], 1.0])
def test_damaged_fields_are_named(value, folder):
    write(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(RagJaxError, match=r"generation_config.json: eos_token_id .* is no token"):
        load(folder)


def test_a_token_beyond_the_vocabulary_is_refused(folder):
    write(folder, "generation_config.json", eos_token_id=[2, 50256])
    with pytest.raises(RagJaxError, match="the token 50256, at which the model stops, is none of"):
        load(folder)


def test_saved_and_grown_models_stop_as_before(folder, tmp_path):
    write(folder, "generation_config.json", eos_token_id=[7, 2])
    lm = load(folder)
    grown = grow_vocabulary(lm, ["<new>"])
    assert grown.tokenizer.stop_ids == (2, 7)
    save(grown, tmp_path / "saved")
    assert load(tmp_path / "saved").tokenizer.stop_ids == (2, 7)
    single = Tokenizer(lm.tokenizer._core, eos="<|end|>")
    save(replace(lm, tokenizer=single), tmp_path / "single")
    assert json.loads((tmp_path / "single" / "config.json").read_text())["eos_token_id"] == 2
    none = Tokenizer(lm.tokenizer._core)
    save(replace(lm, tokenizer=none), tmp_path / "none")
    assert json.loads((tmp_path / "none" / "config.json").read_text())["eos_token_id"] is None
    assert load(tmp_path / "none").tokenizer.stop_ids == ()


@pytest.mark.parametrize("name", ["llama_tied", "bert"])
def test_a_tokenizer_without_the_weights_is_the_models(name, monkeypatch):
    model = load(LLAMA.parent / name).tokenizer
    monkeypatch.setattr("rag_jax.models.io.load.build_params", None)  # no weights are read
    alone = load_tokenizer(LLAMA.parent / name)
    assert alone.encode("Oslo is wet.") == model.encode("Oslo is wet.")
    assert (alone.vocab_size, alone.stop_ids) == (model.vocab_size, model.stop_ids)
