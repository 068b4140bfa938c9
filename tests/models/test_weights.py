"""Weight files and configs: what is read, and what is refused with which words."""

import json
import shutil
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_gguf import interleave

from rag_jax.models import load
from rag_jax.models.io.configs import read_config
from rag_jax.models.io.gguf_file import read_gguf, unpermute
from rag_jax.models.io.tensors import check_finite
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.rope import LinearScaling
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"


def copy_model(name, folder):
    shutil.copytree(GOLDEN / name, folder)
    return folder


@pytest.fixture
def bert(tmp_path):
    return copy_model("bert", tmp_path / "model")


@pytest.fixture
def llama(tmp_path):
    return copy_model("llama_tied", tmp_path / "model")


@pytest.fixture
def bart(tmp_path):
    """With its shards made one file, which `change_tensors` wants."""
    folder = copy_model("bart", tmp_path / "model")
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(params=["question", "context"])
def dpr(request, tmp_path):
    return copy_model(f"dpr_{request.param}", tmp_path / "model")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_same(params, others):
    jax.tree.map(np.testing.assert_array_equal, params, others)


def write_gguf(path, folder, *, skip=(), **metadata):
    """The tied golden model as a GGUF file."""
    config = json.loads((folder / "config.json").read_text())
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocab["vocab"], key=vocab["vocab"].get)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    fields = {
        "llama.vocab_size": config["vocab_size"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.context_length": config["max_position_embeddings"],
        "tokenizer.ggml.bos_token_id": 1,
    } | metadata
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "llama"))
    for name, value in fields.items():
        if value is not None:
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(name, value)
    writer.add_float32("llama.rope.freq_base", config["rope_parameters"]["rope_theta"])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in vocab["merges"]])
    writer.add_array("tokenizer.ggml.token_type", [3] * 3 + [1] * (len(tokens) - 3))
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            tensor = interleave(tensor, heads if "q_proj" in name else kv_heads)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name not in skip:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_fault_in_one_message(bert):
    def damage(tensors):
        del tensors["embeddings.LayerNorm.weight"]
        del tensors["encoder.layer.1.output.dense.bias"]
        tensors["encoder.layer.0.intermediate.dense.weight"] = np.zeros((48, 31), np.float32)
        tensors["classifier.weight"] = np.zeros((2, 32), np.float32)

    change_tensors(bert, damage)
    with pytest.raises(RagJaxError) as caught:
        load(bert)
    message = str(caught.value)
    assert "\n" not in message
    assert "missing embeddings.LayerNorm.weight [32]" in message
    assert "missing encoder.layer.1.output.dense.bias [32]" in message
    assert (
        "encoder.layer.0.intermediate.dense.weight has shape [48, 31], the config wants [48, 32]"
        in message
    )
    assert "no place for classifier.weight [2, 32]" in message
    assert message.count(";") == 3


@pytest.mark.parametrize(
    ("name", "fields", "messages"),
    [
        (
            "llama_tied",
            {"num_hidden_layers": 3},
            ["missing model.layers.2.mlp.up_proj.weight [48, 32]"],
        ),
        (
            "llama_tied",
            {"num_hidden_layers": 1},
            ["no place for model.layers.1.self_attn.k_proj.weight [16, 32]"],
        ),
        (
            "llama_tied",
            {"num_key_value_heads": 4},
            ["k_proj.weight has shape [16, 32], the config wants [32, 32]"],
        ),
        (
            "llama_tied",
            {"vocab_size": 300},
            ["embed_tokens.weight has shape [290, 32], the config wants [300, 32]"],
        ),
        (
            "llama_tied",
            {"model_type": "qwen2"},
            ["missing model.layers.0.self_attn.q_proj.bias [32]"],
        ),
        (
            "llama_tied",
            {"model_type": "phi3"},
            [
                "missing model.layers.1.mlp.gate_up_proj.weight [96, 32]",
                "missing model.layers.1.self_attn.qkv_proj.weight [64, 32]",
                "no place for model.layers.0.mlp.gate_proj.weight [48, 32]",
            ],
        ),
        (
            "phi3",
            {"num_key_value_heads": 4},
            ["0.self_attn.qkv_proj.weight has shape [64, 32], the config wants [96, 32]"],
        ),
        (
            "phi3",
            {"tie_word_embeddings": True},
            ["lm_head.weight differs from the embedding, the config says it is tied"],
        ),
        (
            "stablelm",
            {"use_qkv_bias": False},
            ["no place for model.layers.0.self_attn.q_proj.bias [32]"],
        ),
        (
            "bert",
            {"intermediate_size": 64},
            ["layer.0.intermediate.dense.bias has shape [48], the config wants [64]"],
        ),
    ],
)
def test_a_config_that_contradicts_its_weights(name, fields, messages, tmp_path, monkeypatch):
    """All that does not fit, before any parameter is made."""
    folder = copy_model(name, tmp_path / "model")
    change_config(folder, **fields)
    monkeypatch.setattr(jax.numpy, "asarray", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(RagJaxError, match="do not fit the config") as caught:
        load(folder)
    for message in messages:
        assert message in str(caught.value)


def test_what_is_no_parameter_is_left_out(bert):
    expected = load(bert).params

    def rename(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors["bert." + old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(24)[None]
        tensors["cls.predictions.bias"] = np.zeros(9, np.float32)

    change_tensors(bert, rename)
    assert_same(load(bert).params, expected)


def test_tied_head_may_be_stored_if_it_is_the_embedding(llama):
    expected = load(llama).params

    def add(tensors, head):
        tensors["lm_head.weight"] = head
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    embedding = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(llama, lambda tensors: add(tensors, embedding.copy()))
    assert_same(load(llama).params, expected)
    change_tensors(llama, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    assert_same(load(llama).params, expected)  # safetensors keeps one of a tensor's names
    changed = {"model.embed_tokens.weight": embedding}
    change_tensors(llama, lambda tensors: tensors.update(changed))
    change_tensors(llama, lambda tensors: add(tensors, embedding + 1))
    with pytest.raises(RagJaxError, match=r"lm_head.weight differs from the embedding"):
        load(llama)


COPIES = (
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


@pytest.mark.parametrize("kept", [("model.shared.weight", *COPIES), *zip(COPIES, strict=True)])
def test_bart_embedding_under_any_of_its_names(bart, kept):
    expected = load(bart).params

    def rename(tensors):
        embedding = tensors.pop("model.shared.weight")
        tensors.update({name: embedding.copy() for name in kept})
        tensors["model.encoder.version"] = np.zeros(1, np.float32)

    change_tensors(bart, rename)
    assert_same(load(bart).params, expected)
    if len(kept) > 1:
        change_tensors(bart, lambda tensors: tensors.update({kept[2]: tensors[kept[2]] + 1}))
        with pytest.raises(RagJaxError, match=f"{kept[2]} differs from the embedding"):
            load(bart)


def test_bart_without_its_head(bart):
    expected = load(bart).params

    def strip(tensors):
        del tensors["final_logits_bias"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    change_tensors(bart, strip)
    params = load(bart).params
    assert not params.pop("logits_bias").any() and expected.pop("logits_bias").any()
    assert_same(params, expected)


def test_bart_faults(bart):
    def damage(tensors):
        del tensors["model.shared.weight"]
        del tensors["model.decoder.layers.2.encoder_attn.k_proj.bias"]
        tensors["model.encoder.layers.0.fc1.weight"] = np.zeros((48, 31), np.float32)
        tensors["classification_head.dense.weight"] = np.zeros((32, 32), np.float32)

    change_tensors(bart, damage)
    with pytest.raises(RagJaxError) as caught:
        load(bart)
    for fault in (
        "missing model.shared.weight [300, 32]",
        "missing model.decoder.layers.2.encoder_attn.k_proj.bias [32]",
        "model.encoder.layers.0.fc1.weight has shape [48, 31], the config wants [48, 32]",
        "no place for classification_head.dense.weight [32, 32]",
    ):
        assert fault in str(caught.value)


def test_dpr_encoders_are_told_apart(dpr):
    expected = load(dpr)
    old, prefix = expected.params, expected.config.dpr_role
    prefix = {"question": "question_encoder", "context": "ctx_encoder"}[prefix]
    unused = {
        f"{prefix}.bert_model.embeddings.position_ids": np.arange(64)[None],
        f"{prefix}.bert_model.pooler.dense.weight": np.zeros((32, 32), np.float32),
    }
    change_tensors(dpr, lambda tensors: tensors.update(unused))
    assert_same(load(dpr).params, old)
    other = {"question": "DPRContextEncoder", "context": "DPRQuestionEncoder"}
    change_config(dpr, architectures=[other[expected.config.dpr_role]])
    with pytest.raises(RagJaxError, match=f"no place for {prefix}.bert_model.embeddings"):
        load(dpr)


@pytest.mark.parametrize("architectures", [None, [], ["DPRReader"]])
def test_dpr_config_refused(dpr, architectures):
    change_config(dpr, architectures=architectures)
    with pytest.raises(RagJaxError, match=r"architectures .* is not supported; for DPR, "):
        read_config(dpr / "config.json")


def test_untied_head_is_missed(llama):
    change_config(llama, tie_word_embeddings=False)
    with pytest.raises(RagJaxError, match=r"missing lm_head.weight \[290, 32\]"):
        load(llama)


def test_an_encoder_saved_without_its_head_needs_none(llama):
    """As base classes save it, whatever class with a head its config names."""
    wanted = load(llama).params
    change_config(llama, tie_word_embeddings=False)
    pooling = llama / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text('{"pooling_mode": "lasttoken"}')
    kinds = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"type": f"sentence_transformers.{k}", "path": path} for k, path in kinds.items()]
    (llama / "modules.json").write_text(json.dumps(modules))
    found = load(llama)
    assert found.config.tie_embeddings
    assert_same(found.params, wanted)
    table = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(llama, lambda tensors: tensors.update({"lm_head.weight": table + 1}))
    found = load(llama)
    assert not found.config.tie_embeddings
    np.testing.assert_array_equal(found.params["head"]["kernel"].T, table + 1)


def test_half_precision_weights(bert):
    def halve(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(jax.numpy.bfloat16)

    expected = load(bert, dtype="bfloat16").params
    change_tensors(bert, halve)
    assert_same(load(bert, dtype="bfloat16").params, expected)
    assert load(bert).params["embed"]["norm"]["scale"].dtype == np.float32


def test_integer_weights_are_refused(bert, monkeypatch):
    def quantise(tensors):
        name = "encoder.layer.0.output.dense.weight"
        tensors[name] = tensors[name].astype(np.int8)

    change_tensors(bert, quantise)
    monkeypatch.setattr(jax.numpy, "asarray", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(RagJaxError, match=r"layer.0.output.dense.weight is I8; only float"):
        load(bert)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs(bert, name):
    """What a clone without Git LFS leaves in the place of a file."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (bert / name).write_bytes(pointer)
    with pytest.raises(RagJaxError, match=f"{name}: is a pointer of Git LFS: run `git lfs pull`"):
        load(bert)


@pytest.mark.parametrize("keep", [0, 5, 900, -1])
def test_truncated_safetensors(bert, keep):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RagJaxError, match=r"model.safetensors is truncated or not a safe"):
        load(bert)


def test_shards(tmp_path):
    folder = copy_model("llama_untied_sharded", tmp_path / "model")
    shard = folder / "model-00002-of-00003.safetensors"
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(RagJaxError, match="lacks model-00002-of-00003.safetensors: copy"):
        load(folder)
    shard.write_bytes(b"short")
    with pytest.raises(RagJaxError, match="model-00002-of-00003.safetensors is truncated"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(RagJaxError, match="names weight files outside its folder"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(RagJaxError, match="index.json is not an index of weight files"):
        load(folder)


def test_no_weights(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(RagJaxError, match=r"no .safetensors or .gguf weights .*pickled"):
        load(bert)


def test_tokenizer_larger_than_the_embedding(llama):
    change_config(llama, vocab_size=289)
    with pytest.raises(RagJaxError, match="has 290 ids, but the config's vocab_size is 289"):
        load(llama)


def test_control_tokens_that_the_model_has_no_use_for(llama):
    core = json.loads((llama / "tokenizer.json").read_text())
    image = {"id": 290, "content": "<image>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    core["added_tokens"].append(image | flags)
    (llama / "tokenizer.json").write_text(json.dumps(core))
    settings = json.loads((llama / "tokenizer_config.json").read_text())
    named = {"extra_special_tokens": {"image_token": "<image>"}}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings | named))
    ours = load(llama)
    assert ours.tokenizer.vocab_size == ours.config.vocab_size + 1 == 291
    assert 290 not in ours.tokenizer.encode("an <image> here")
    core["added_tokens"][-1]["special"] = False  # a word
    core["added_tokens"][-1]["content"] = "image"
    (llama / "tokenizer.json").write_text(json.dumps(core))
    with pytest.raises(RagJaxError, match="has 291 ids, but the config's vocab_size is 290"):
        load(llama)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "model_type",
            "gemma",
            "model_type 'gemma' is not supported; supported are bart, bert, distilbert, dpr",
        ),
        ("model_type", None, "model_type None is not supported"),
        ("attention_bias", True, "attention_bias True is not supported"),
        ("mlp_bias", True, "mlp_bias True is not supported"),
        ("hidden_act", "relu", "hidden_act 'relu' is not supported"),
        ("sliding_window", 32, "sliding_window 32 is not supported: it is shorter than the"),
        ("num_local_experts", 8, "num_local_experts 8: mixtures of experts are not supported"),
        ("rope_scaling", {"type": "linear"}, "factor must be a positive number, not None"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}, "rope scaling 'yarn' is not supported"),
        ("rope_scaling", {"factor": 2.0}, "factor 2.0 is not supported"),
        (
            "rope_parameters",
            {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
            "rope_parameters by type of layer .full_attention, sliding_attention. is not supp",
        ),
        (
            "layer_types",
            ["full_attention", "sliding_attention"],
            "layer_types 'sliding_attention' is",
        ),
        ("rope_scaling", 2.0, "rope_scaling must be a JSON object, not 2.0"),
        ("rope_parameters", {"rope_type": "llama3"}, "factor must be a positive number, not None"),
        ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not sup"),
        ("quantization_config", {"quant_method": "awq"}, "quantization_config 'awq' is not supp"),
        ("hidden_size", "32", "hidden_size must be a positive integer, not '32'"),
        ("vocab_size", None, "vocab_size must be a positive integer, not None"),
        ("num_hidden_layers", 0, "num_hidden_layers must be a positive integer, not 0"),
        ("rms_norm_eps", "x", "rms_norm_eps must be a positive number, not 'x'"),
        ("num_key_value_heads", 3, "the number of query heads, 4, is not a multiple of"),
    ],
)
def test_llama_config_refused(llama, field, value, message):
    change_config(
        llama, **{field: value, **({"rope_parameters": None} if "rope_s" in field else {})}
    )
    with pytest.raises(RagJaxError, match=rf"config.json: {message}"):
        read_config(llama / "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "gelu_new"), ("position_embedding_type", "relative_key"), ("is_decoder", True)],
)
def test_bert_config_refused(bert, field, value):
    change_config(bert, **{field: value})
    with pytest.raises(RagJaxError, match=f"config.json: {field} .* is not supported"):
        read_config(bert / "config.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("activation_function", "relu", "activation_function 'relu' is not supported"),
        ("tie_word_embeddings", False, "tie_word_embeddings False is not supported"),
        ("d_model", 0, "d_model must be a positive integer, not 0"),
        ("encoder_attention_heads", 3, "d_model 32 is not a multiple of encoder_attention_heads 3"),
        ("decoder_attention_heads", 5, "d_model 32 is not a multiple of decoder_attention_heads 5"),
        ("pad_token_id", 300, "pad_token_id must be a token id below 300, not 300"),
        ("decoder_start_token_id", "2", "decoder_start_token_id must be a token id below 300"),
    ],
)
def test_bart_config_refused(bart, field, value, message):
    change_config(bart, **{field: value})
    with pytest.raises(RagJaxError, match=rf"/config.json: {message}"):
        read_config(bart / "config.json")


def test_bart_config_defaults(bart):
    (bart / "config.json").write_text(json.dumps({"model_type": "bart"}))
    (bart / "generation_config.json").unlink()
    # As transformers, which forces nothing that no file asks for.
    assert read_config(bart / "config.json") == BartConfig(forced_eos_id=None)


def test_bart_forced_tokens_come_from_where_transformers_reads_them(bart):
    def read():
        config = read_config(bart / "config.json")
        return config.forced_bos_id, config.forced_eos_id

    change_config(bart, forced_bos_token_id=7, forced_eos_token_id=8)
    assert read() == (0, 2)
    path = bart / "generation_config.json"
    path.write_text('{"forced_eos_token_id": [2]}')
    assert read() == (None, 2)
    path.write_text('{"forced_eos_token_id": [2, 3]}')
    with pytest.raises(RagJaxError, match=r"generation_config.json: forced_eos_token_id must be"):
        read()
    path.write_text("{}")
    assert read() == (None, None)
    path.write_text("{")
    with pytest.raises(RagJaxError, match=r"generation_config.json is not valid JSON"):
        read()
    path.unlink()
    assert read() == (7, 8)


def test_config_missing_or_damaged(tmp_path):
    with pytest.raises(RagJaxError, match=r"config.json is missing"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RagJaxError, match=r"config.json is not valid JSON"):
        read_config(tmp_path / "config.json")


def test_rotary_base_where_earlier_versions_keep_it(llama):
    change_config(llama, rope_parameters=None, rope_theta=7000.0)
    assert read_config(llama / "config.json").rope_theta == 7000.0


def test_unpermute_undoes_the_interleaving():
    kernel = np.arange(24 * 5).reshape(24, 5)
    for heads in (1, 2, 3, 6):
        np.testing.assert_array_equal(unpermute(interleave(kernel, heads), heads=heads), kernel)


def test_gguf_holds_the_same_model(llama, tmp_path):
    expected = load(llama)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", llama)
    model = load(tmp_path / "gguf" / "tiny.gguf")
    assert model.config == expected.config
    assert_same(model.params, expected.params)
    assert model.tokenizer.bos_id == 1 and model.tokenizer.token_id("<|end|>") == 2
    text = "What is the capital of France?"
    assert model.tokenizer.encode(text) == expected.tokenizer.encode(text)


def test_gguf_missing_and_unknown_tensors(llama, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, skip=("blk.0.attn_q.weight", "output_norm.weight"))
    with pytest.raises(RagJaxError) as caught:
        load(path)
    assert "missing model.layers.0.self_attn.q_proj.weight [32, 32]" in str(caught.value)
    assert "missing model.norm.weight [32]" in str(caught.value)


@pytest.mark.parametrize("keep", [3, 40, 2000, 0.5, -1000])
def test_truncated_gguf(llama, tmp_path, keep):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    with pytest.raises(RagJaxError, match=r"tiny.gguf is truncated or not a GGUF file"):
        read_gguf(path)


def test_gguf_of_another_architecture(llama, tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, llama, architecture="gemma")
    with pytest.raises(RagJaxError, match="architecture 'gemma' is not supported; supported are"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("llama.block_count", None, "llama.block_count must be a positive integer, not None"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count 4 is not supported"),
        ("llama.rope.scaling.attn_factor", 2, "llama.rope.scaling.attn_factor 2 is not supported"),
        ("llama.rope.freq_scale", 1, "llama.rope.freq_scale 1 is not supported"),
        ("llama.expert_count", 8, "llama.expert_count 8 is not supported"),
        ("llama.rope.scaling.type", "yarn", "llama.rope.scaling.type 'yarn' is not supported"),
        ("general.type", "adapter", "tiny.gguf is no model, but of type 'adapter': load its base"),
        ("general.type", "imatrix", "tiny.gguf is no model, but of type 'imatrix'$"),
        ("split.count", 2, "tiny.gguf is part 0 .from 0. of 2 of a model"),
    ],
)
def test_gguf_config_refused(llama, tmp_path, field, value, message):
    write_gguf(tmp_path / "tiny.gguf", llama, **{field: value})
    with pytest.raises(RagJaxError, match=message):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.rope.scaling.type": "linear"},
        {"llama.rope.scaling.factor": 1, "llama.rope.scale_linear": 0},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4},
        {"llama.rope.scaling.original_context_length": 64, "llama.expert_count": 0},
        {"general.type": "model", "split.count": 1},
    ],
)
def test_gguf_settings_without_effect(llama, tmp_path, fields):
    write_gguf(tmp_path / "tiny.gguf", llama, **fields)
    assert load(tmp_path / "tiny.gguf").config == load(llama).config


@pytest.mark.parametrize("name", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_gguf_linear_scaling(llama, tmp_path, name):
    write_gguf(tmp_path / "tiny.gguf", llama, **{name: 4})
    assert load(tmp_path / "tiny.gguf").config.rope_scaling == LinearScaling(4.0)


def test_a_gguf_file_beside_others(llama, tmp_path):
    write_gguf(llama / "a.gguf", llama)
    write_gguf(llama / "b.gguf", llama, **{"llama.context_length": 8})
    assert load(llama / "b.gguf").config.max_length == 8
    assert (
        load(llama / "a.gguf").config
        == load(llama).config
        == load(llama / "model.safetensors").config
    )
    assert load(llama).fingerprint != load(llama / "a.gguf").fingerprint


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, None), (-np.inf, None), (1e5, np.float16)])
def test_numbers_that_are_none(llama, value, dtype):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value

    change_tensors(llama, spoil)
    message = "layers.1.mlp.up_proj.weight has a NaN, or a number beyond float"
    with pytest.raises(RagJaxError, match=message):
        load(llama, dtype=dtype)


@settings(max_examples=50)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "bfloat16"]),
    target=st.sampled_from(["float16", "float32", "bfloat16"]),
    size=st.sampled_from([1, 5, (1 << 18) + 1]),
    number=st.sampled_from([0.0, -1e30, 65504.0, 65519.0, 65520.0, 3.3e38, 1e39, np.inf, np.nan]),
)
def test_what_is_looked_for_is_what_the_parameter_becomes(dtype, target, size, number):
    array = np.zeros(size, jnp.dtype(dtype))
    with np.errstate(over="ignore"):
        array[-1] = number
        becomes = array[-1:].astype(jnp.dtype(target))
    if np.isfinite(becomes.astype(float)).all():
        check_finite(array, jnp.dtype(target), "w")
    else:
        with pytest.raises(RagJaxError, match="^w has a NaN, or a number beyond"):
            check_finite(array, jnp.dtype(target), "w")


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("rms_norm_eps", "NaN", "rms_norm_eps must be a positive number, not nan"),
        ("rms_norm_eps", "1e400", "rms_norm_eps must be a positive number, not inf"),
        ("num_hidden_layers", "1000000000", "num_hidden_layers must be at most 4096"),
        ("vocab_size", "1" + "0" * 400, "vocab_size must be at most 2147483647"),
        ("hidden_size", "1" + "0" * 5000, "is not valid JSON: Exceeds the limit"),
        ("model_type", "[" * 400 + "]" * 400, "model_type .* is not supported"),
        ("hidden_act", "[" * 100000, "is not valid JSON: maximum recursion depth"),
        ("model_type", "{}", "model_type {} is not supported"),
    ],
)
def test_numbers_and_nesting_of_a_config(llama, field, text, message):
    path = llama / "config.json"
    fields = json.loads(path.read_text()) | {field: "HERE"}
    path.write_text(json.dumps(fields).replace('"HERE"', text))
    with pytest.raises(RagJaxError, match=f"config.json.* {message}|config.json:? {message}"):
        read_config(path)
