"""Saved folders: what `load` reads from them, what stands in them, and that they come whole."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_weights import write_gguf

from rag_jax import lora
from rag_jax.models import load, save
from rag_jax.models import save as save_function
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"
DECODERS = ("llama_tied", "llama_untied_sharded", "llama3", "phi3", "qwen2", "stablelm")
TEXTS = ("The capital of France is Paris.", "<s> What's 東京? <|end|>")


def read_tensors(folder):
    """Every stored tensor by name."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def assert_same(tree, other):
    def compare(one, two):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)

    jax.tree.map(compare, tree, other)


def assert_same_tokenizer(ours, theirs):
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
    for name in ("vocab_size", "bos_id", "eos_id", "pad_id", "_special", "_template"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert all(ours._names[short] == name for short, name in theirs._names.items())


@pytest.mark.parametrize("name", (*DECODERS, "bert", "bart", "dpr_question", "dpr_context"))
def test_round_trip(name, tmp_path):
    model = load(GOLDEN / name)
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == model.config
    assert_same(again.params, model.params)
    assert_same_tokenizer(again.tokenizer, model.tokenizer)
    # Fused tensors and all, what is stored is what transformers stored.
    theirs = {k: v.astype(np.float32) for k, v in read_tensors(GOLDEN / name).items()}
    theirs = {k: v for k, v in theirs.items() if not k.startswith("pooler.")}
    assert_same(read_tensors(tmp_path / "saved"), theirs)


@pytest.mark.parametrize("name", ["phi3", "stablelm"])
def test_bfloat16_stays_bfloat16(name, tmp_path):
    model = load(GOLDEN / name, dtype="bfloat16")
    save(model, tmp_path / "saved")
    assert_same(load(tmp_path / "saved", dtype="bfloat16").params, model.params)
    assert_same(read_tensors(tmp_path / "saved"), read_tensors(GOLDEN / name))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"


def test_shards(tmp_path):
    model = load(GOLDEN / "phi3")
    save(model, tmp_path / "one")
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    save(model, tmp_path / "many", shard_bytes=16_000)
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    assert [path.name for path in shards] == names and len(shards) > 3
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in shards]
    assert all(size <= 16_000 for size in sizes)
    assert all(a + b > 16_000 for a, b in pairwise(sizes))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: p.name for p in shards for name in load_file(p)}
    assert_same(load(tmp_path / "many").params, model.params)
    save(model, tmp_path / "each", shard_bytes=1)  # no tensor is split
    assert len(list((tmp_path / "each").glob("*.safetensors"))) == len(index["weight_map"])
    assert_same(load(tmp_path / "each").params, model.params)


def test_a_model_that_came_as_gguf(tmp_path):
    shutil.copytree(GOLDEN / "llama_tied", tmp_path / "source")
    write_gguf(tmp_path / "tiny.gguf", tmp_path / "source")
    model = load(tmp_path / "tiny.gguf")
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == model.config
    assert_same(again.params, model.params)
    assert_same_tokenizer(again.tokenizer, model.tokenizer)


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded"])
def test_grown_and_padded(name, tmp_path):
    grown = grow_vocabulary(load(GOLDEN / name), ["<EOQ>", "<Self>"], multiple=64)
    save(grown, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == grown.config and again.config.vocab_padding == 320 - 292
    assert_same(again.params, grown.params)
    assert_same_tokenizer(again.tokenizer, grown.tokenizer)
    assert again.tokenizer.token_id("<Self>") == 291


def test_config_names_the_special_tokens(tmp_path):
    save(load(GOLDEN / "llama_tied"), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 0)
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 64 and settings["unk_token"] is None


def test_nothing_is_half_written(tmp_path, monkeypatch):
    model = load(GOLDEN / "llama_tied")
    save(model, tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    module = __import__(save_function.__module__, fromlist=["save_file"])
    monkeypatch.setattr(module, "save_file", fail)
    for name in ("saved", "new"):
        with pytest.raises(OSError, match="No space left"):
            save(model, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


def test_a_model_is_replaced_and_anything_else_is_not(tmp_path):
    save(load(GOLDEN / "llama_tied"), tmp_path / "saved", shard_bytes=20_000)
    save(load(GOLDEN / "phi3"), tmp_path / "saved")
    assert load(tmp_path / "saved").config.family == "phi3"
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    with pytest.raises(RagJaxError, match="contains notes.txt, which is not part of a model: save"):
        save(load(GOLDEN / "phi3"), tmp_path / "saved")
    with pytest.raises(RagJaxError, match="is a file: save into a folder"):
        save(load(GOLDEN / "phi3"), tmp_path / "saved" / "notes.txt")
    (tmp_path / "empty").mkdir()
    save(load(GOLDEN / "phi3"), tmp_path / "empty")


def test_parameters_that_are_not_the_models(tmp_path):
    model = load(GOLDEN / "qwen2")
    adapter = lora.init(jax.random.key(0), model.params, targets=".*layers_1/ffn/up.*", rank=2)
    adapted = lora.apply(model.params, adapter, scale=1.0)
    message = (
        r"no place for layers_1/ffn/up/lora_a \[32, 2\] \(fold the adapter into the weights first\)"
    )
    with pytest.raises(RagJaxError, match=message):
        save(replace(model, params=adapted), tmp_path / "saved")
    damaged = {**model.params, "head": {"kernel": jnp.zeros((32, 41))}}
    del damaged["final_norm"]
    with pytest.raises(RagJaxError) as caught:
        save(replace(model, params=damaged), tmp_path / "saved")
    assert "missing final_norm/scale [32]" in str(caught.value)
    assert "head/kernel has shape [32, 41], the config wants [32, 40]" in str(caught.value)
    assert not list(tmp_path.iterdir())
