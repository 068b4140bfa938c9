"""Adapters in PEFT's folders: what stands in them, what is read from them, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rag_jax import lora
from rag_jax.models import load
from rag_jax.models.nn.pooling import MEAN
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"
DECODERS = ("llama_tied", "llama_untied_sharded", "llama3", "phi3", "qwen2", "stablelm", "gemma3")
WEIGHTS = "adapter_model.safetensors"
FFN = ".*ffn/(gate|up|down)/kernel"
MODELS = {}


def load_model(name):
    """A model of `tests/golden`, read once."""
    return MODELS.setdefault(name, load(GOLDEN / name))


def make_adapter(model, targets=".*/kernel", rank=2, seed=0):
    adapter = lora.init(jax.random.key(0), model.params, targets=targets, rank=rank)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), "f"), adapter)


def assert_same(tree, other, atol=0.0):
    def compare(one, two):
        assert one.dtype == two.dtype
        np.testing.assert_allclose(one, two, atol=atol)

    jax.tree.map(compare, tree, other)


def assert_same_effect(model, one, other):
    """Two adapters, each with its scale, change the weights alike."""
    folded = (lora.fold(model.params, adapter, scale=scale) for adapter, scale in (one, other))
    assert_same(*folded, atol=1e-5)


@pytest.fixture
def saved(tmp_path):
    """An adapter on the FFN of a llama, as saved."""
    model = load_model("llama_tied")
    lora.save_peft(make_adapter(model, FFN), tmp_path / "adapter", model, alpha=32)
    return tmp_path / "adapter"


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder, change, metadata=None):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("name", [*DECODERS, "bart", "bert"])
@pytest.mark.parametrize("targets", [".*/kernel", FFN, ".*layers_1/ffn/(up|down)/kernel"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_round_trip(name, targets, rank_stabilized, tmp_path):
    model = load_model(name)
    adapter = make_adapter(model, targets, rank=3)
    options = {"alpha": 12, "rank_stabilized": rank_stabilized}
    lora.save_peft(adapter, tmp_path / "adapter", model, **options)
    again, scale = lora.load_peft(tmp_path / "adapter", model)
    expected = lora.compute_scale(12, 3, rank_stabilized=rank_stabilized)
    assert_same_effect(model, (again, scale), (adapter, expected))
    if name != "phi3":
        assert_same(again, adapter)
        assert scale == expected
    # What was read is what the next one reads, where ranks had to stand beside each other too.
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    options["alpha"] = config["lora_alpha"]
    lora.save_peft(again, tmp_path / "adapter", model, **options)
    assert_same(lora.load_peft(tmp_path / "adapter", model)[0], again)


def test_what_stands_in_the_files(saved):
    model = load_model("llama_tied")
    adapter = make_adapter(model, FFN)
    assert {path.name for path in saved.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, 32, False)
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    tensors = load_file(saved / "adapter_model.safetensors")
    assert len(tensors) == 2 * 3 * model.config.num_layers
    own = adapter["layers_1"]["ffn"]["down"]["kernel"]
    name = "base_model.model.model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(tensors[f"{name}.lora_A.weight"], own["a"].T)
    np.testing.assert_array_equal(tensors[f"{name}.lora_B.weight"], own["b"].T)


def read_adapter(folder):
    """The fields of an adapter, and the modules that it has tensors for."""
    names = {name.rpartition(".lora_")[0] for name in load_file(folder / WEIGHTS)}
    return json.loads((folder / "adapter_config.json").read_text()), names


@pytest.mark.parametrize(
    "start", ["", "language_model.", "model.language_model.", "language_model.model."]
)
def test_what_stands_before_the_layers(start, saved):
    """Nothing in a model without a head, and another name in one that reads images."""

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace(".model.model.", f".model.{start}")] = tensors.pop(name)

    edit_tensors(saved, rename)
    model = load_model("llama_tied")
    expected = make_adapter(model, FFN)
    assert_same(lora.load_peft(saved, model)[0], expected)
    pattern = start.replace(".", r"\.") + r"layers\.\d\.mlp\.(gate|up|down)_proj"
    edit_config(saved, target_modules=pattern)
    assert_same(lora.load_peft(saved, model)[0], expected)
    name = f"base_model.model.{start}embed_tokens.weight"
    own = np.asarray(model.params["embed"]["embedding"])
    edit_tensors(saved, lambda tensors: tensors.update({name: own}))
    assert_same(lora.load_peft(saved, model)[0], expected)
    edit_config(saved, target_modules=f"x{pattern}")
    with pytest.raises(RagJaxError, match=f"no place for base_model.model.{start}layers.0.mlp"):
        lora.load_peft(saved, model)


def test_the_language_model_of_a_model_that_reads_images(tmp_path):
    text = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    folder = shutil.copytree(GOLDEN / "gemma3", tmp_path / "base")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    model, target = load(folder), "model.language_model.layers.1.mlp.up_proj"
    adapter = make_adapter(model, ".*layers_1/ffn/up/kernel")
    lora.save_peft(adapter, tmp_path / "adapter", model, alpha=1)
    fields, names = read_adapter(tmp_path / "adapter")
    assert (fields["task_type"], fields["target_modules"]) == ("CAUSAL_LM", [target])
    assert names == {f"base_model.model.{target}"}
    assert_same(lora.load_peft(tmp_path / "adapter", model)[0], adapter)
    lora.save_peft(make_adapter(model, ".*up/kernel"), tmp_path / "adapter", model, alpha=1)
    fields, _ = read_adapter(tmp_path / "adapter")  # `up_proj` might be a layer over images
    assert fields["target_modules"] == [target.replace("1", "0"), target]
    grown = grow_vocabulary(model, ["<new>"])  # which is saved as a model of text alone
    lora.save_peft(adapter, tmp_path / "adapter", grown, alpha=1)
    assert read_adapter(tmp_path / "adapter")[0]["target_modules"] == ["model.layers.1.mlp.up_proj"]


def test_a_decoder_that_embeds_texts_has_no_head(tmp_path):
    model = load_model("llama_tied")
    model = replace(model, model=model.model.clone(pooling=MEAN))
    adapter = make_adapter(model, ".*layers_1/ffn/up/kernel")
    lora.save_peft(adapter, tmp_path / "adapter", model, alpha=1)
    fields, names = read_adapter(tmp_path / "adapter")
    assert fields["task_type"] == "FEATURE_EXTRACTION"
    assert fields["target_modules"] == ["layers.1.mlp.up_proj"]
    assert names == {"base_model.model.layers.1.mlp.up_proj"}
    assert_same(lora.load_peft(tmp_path / "adapter", model)[0], adapter)


def test_targets_have_short_names_only_if_those_mean_the_same(tmp_path):
    model = load_model("qwen2")

    def targets(regex):
        lora.save_peft(make_adapter(model, regex), tmp_path / "adapter", model, alpha=1)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        return config["target_modules"]

    assert targets(".*attention/(query|value)/kernel|head/kernel") == [
        "lm_head",
        "q_proj",
        "v_proj",
    ]
    assert targets("layers_1/ffn/up/kernel") == ["model.layers.1.mlp.up_proj"]


def test_fused_projections(tmp_path):
    """Phi-3's `gate_up_proj`: two ranks beside each other; only `up`, on its half alone."""
    model = load_model("phi3")
    size, folder = model.config.ffn_size, tmp_path / "adapter"
    adapter = make_adapter(model, FFN, rank=2)
    lora.save_peft(adapter, folder, model, alpha=8)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 16)
    assert config["target_modules"] == ["down_proj", "gate_up_proj"]
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.gate_up_proj"
    a, b = (tensors[f"{name}.lora_{side}.weight"] for side in "AB")
    assert a.shape == (4, model.config.hidden_size) and b.shape == (2 * size, 4)
    for part, rows in (("gate", slice(0, size)), ("up", slice(size, None))):
        own = adapter["layers_0"]["ffn"][part]["kernel"]
        np.testing.assert_allclose((b @ a)[rows], (own["a"] @ own["b"]).T, atol=1e-5)
    only = make_adapter(model, ".*ffn/up/kernel", rank=2)
    lora.save_peft(only, folder, model, alpha=8)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    assert not load_file(folder / "adapter_model.safetensors")[f"{name}.lora_B.weight"][:size].any()
    assert_same_effect(model, lora.load_peft(folder, model), (only, 4.0))


def test_merged_adapters(tmp_path):
    model = load_model("llama_tied")
    bank = lora.stack([make_adapter(model, FFN, seed=seed) for seed in range(3)])
    merged = lora.merge(bank, scale=16.0)
    lora.save_peft(merged, tmp_path / "merged", model, alpha=6)
    again, scale = lora.load_peft(tmp_path / "merged", model)
    assert scale == 1.0
    assert_same(again, merged)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"target_modules": r"model\.layers\.0\.mlp\.(up|gate|down)_proj"}, {0}),
        ({"layers_to_transform": 1}, {1}),
        ({"layers_to_transform": [0, 1]}, {0, 1}),
        ({"layers_to_transform": []}, {0, 1}),
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, {1}),
        ({"layers_to_transform": [1], "layers_pattern": ["h", "model.layers"]}, {1}),
        ({"layers_to_transform": [1], "layers_pattern": []}, {1}),
        ({"exclude_modules": r"model\.layers\.1\..*"}, {0}),
        ({"lora_dropout": 0.1, "init_lora_weights": "gaussian", "revision": "main"}, {0, 1}),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}}, {0, 1}),
        ({"eva_config": {"rho": 1.0}, "loftq_config": {"loftq_bits": 4}}, {0, 1}),
        ({"init_lora_weights": "orthogonal", "corda_config": {}, "lora_ga_config": {}}, {0, 1}),
        ({"an_option_to_come": False, "bias": "none", "rank_pattern": {}}, {0, 1}),
    ],
)
def test_ways_in_which_peft_names_targets(saved, options, layers):
    model = load_model("llama_tied")
    edit_config(saved, **options)

    def keep(tensors):
        for name in list(tensors):
            if int(name.split(".")[4]) not in layers:
                del tensors[name]

    edit_tensors(saved, keep)
    adapter, scale = lora.load_peft(saved, model)
    expected = make_adapter(model, FFN)
    assert_same(adapter, {f"layers_{i}": expected[f"layers_{i}"] for i in layers})
    assert scale == 16.0


def test_a_copy_of_a_weight_of_the_base_model(saved):
    """As PEFT stores one beside an adapter of the head; any other weight has no place."""
    model = load_model("llama_tied")
    name, own = "base_model.model.model.embed_tokens.weight", model.params["embed"]["embedding"]
    edit_tensors(saved, lambda tensors: tensors.update({name: np.asarray(own)}))
    assert_same(lora.load_peft(saved, model)[0], make_adapter(model, FFN))
    edit_tensors(saved, lambda tensors: tensors.update({name: np.asarray(own) + 1}))
    with pytest.raises(RagJaxError, match=f"no place for {name}"):
        lora.load_peft(saved, model)


def test_a_copy_of_the_head_that_is_the_embedding(saved):
    model, name = load_model("llama_tied"), "base_model.model.lm_head.weight"
    own = np.asarray(model.params["embed"]["embedding"])
    edit_tensors(saved, lambda tensors: tensors.update({name: own}))
    assert_same(lora.load_peft(saved, model)[0], make_adapter(model, FFN))
    edit_tensors(saved, lambda tensors: tensors.update({name: own + 1}))
    with pytest.raises(RagJaxError, match=f"no place for {name}"):
        lora.load_peft(saved, model)


@pytest.mark.parametrize("stabilized", [False, True])
def test_layers_with_ranks_and_scales_of_their_own(saved, stabilized):
    """As of EVA; each layer's update of its kernel against `b a` by PEFT's rule."""
    model, rng = load_model("llama_tied"), np.random.default_rng(3)
    ranks = {"gate": (2, 32.0), "up": (5, 7.0), "down": (1, 32.0)}
    patterns = {
        "rank_pattern": {"up_proj": 5, r"model\.layers\.\d\.mlp\.down_proj": 1, "nothing": 4},
        "alpha_pattern": {"mlp.up_proj": 7},
    }
    edit_config(saved, init_lora_weights="eva", use_rslora=stabilized, **patterns)
    expected = {}

    def draw(tensors):
        for name in list(tensors):
            kernel = name.split(".")[6].removesuffix("_proj")
            (rank, _), shape = ranks[kernel], list(tensors[name].shape)
            shape["lora_B" in name] = rank
            tensors[name] = rng.normal(size=shape).astype("f")
        for i, kernel in ((i, kernel) for i in (0, 1) for kernel in ranks):
            (rank, alpha), start = ranks[kernel], f"base_model.model.model.layers.{i}.mlp.{kernel}"
            a, b = (tensors[f"{start}_proj.lora_{side}.weight"] for side in "AB")
            scale = alpha / (rank**0.5 if stabilized else rank)
            expected[i, kernel] = scale * (b @ a).T

    edit_tensors(saved, draw)
    adapter, scale = lora.load_peft(saved, model)
    for (i, kernel), update in expected.items():
        own = adapter[f"layers_{i}"]["ffn"][kernel]["kernel"]
        assert own["a"].shape[1] == own["b"].shape[0] == 5
        np.testing.assert_allclose(scale * own["a"] @ own["b"], update, atol=1e-4)
    lora.save_peft(adapter, saved, model, alpha=scale * 5)  # with one rank
    assert_same_effect(model, (adapter, scale), lora.load_peft(saved, model))


@pytest.mark.parametrize("start", ["", "bert.", "roberta."])
def test_an_adapter_of_an_encoder_with_a_head_and_a_pooler(start, tmp_path):
    """Neither is part of an embedding; the pooler's adapter is left out, other tensors are not."""
    model = load_model("bert")
    adapter = make_adapter(model, ".*layers_\\d/.*/kernel")
    lora.save_peft(adapter, tmp_path / "saved", model, alpha=4)
    fields, _ = read_adapter(tmp_path / "saved")
    assert all(target.startswith("encoder.layer.") for target in fields["target_modules"])
    edit_config(tmp_path / "saved", target_modules=["query", "key", "value", "dense"])
    shape = np.zeros((2, 32), "f"), np.zeros((32, 2), "f")

    def rename(tensors):
        for name in list(tensors):
            renamed = name.replace("base_model.model.", f"base_model.model.{start}")
            tensors[renamed] = tensors.pop(name)
        for side, zeros in zip("AB", shape, strict=True):
            tensors[f"base_model.model.{start}pooler.dense.lora_{side}.weight"] = zeros

    edit_tensors(tmp_path / "saved", rename)
    again, scale = lora.load_peft(tmp_path / "saved", model)
    assert_same(again, adapter)
    assert scale == 2.0
    other = f"base_model.model.{start}classifier.dense.lora_A.weight"
    edit_tensors(tmp_path / "saved", lambda tensors: tensors.update({other: shape[0]}))
    with pytest.raises(RagJaxError, match=f"no place for {other}"):
        lora.load_peft(tmp_path / "saved", model)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "f4"), (np.inf, "f4"), (1e5, "f2")])
def test_numbers_that_are_none(saved, value, dtype):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def spoil(tensors):
        tensors[name][-1, -1] = value

    edit_tensors(saved, spoil)
    with pytest.raises(RagJaxError, match=f"safetensors: {name} has a NaN, or a number beyond"):
        lora.load_peft(saved, load_model("llama_tied"), dtype=dtype)


def test_types(saved):
    adapter, _ = lora.load_peft(saved, load_model("llama_tied"), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype(jnp.bfloat16)}
    lora.save_peft(adapter, saved, load_model("llama_tied"), alpha=1)
    again, _ = lora.load_peft(saved, load_model("llama_tied"), dtype=jnp.bfloat16)
    assert_same(again, adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .* is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
        ({"rank_pattern": {"up_proj": 0}}, "rank_pattern must give positive numbers by name"),
        ({"rank_pattern": {"up_proj": 2.5}}, "rank_pattern must give positive numbers"),
        ({"rank_pattern": ["up_proj"]}, "rank_pattern must give positive numbers"),
        ({"alpha_pattern": {"up_proj": True}}, "alpha_pattern must give positive numbers"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern '.*\(.*': "),
        ({"an_option_to_come": 3}, "an_option_to_come 3 is not supported"),
        ({"init_lora_weights": "corda", "corda_config": {"x": 1}}, "init_lora_weights 'corda' is"),
        ({"init_lora_weights": "loftq", "loftq_config": {"x": 1}}, "init_lora_weights 'loftq' is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"use_rslora": "yes"}, "use_rslora 'yes' is not supported"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; LORA is"),
        ({"r": 0}, "r must be a positive integer, not 0"),
        ({"lora_alpha": "x"}, "lora_alpha must be a positive number"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a positive number, not inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number, not nan"),
        ({"lora_alpha": 1e39}, "lora_alpha must be a positive number, not 1e"),
        ({"r": 10**30}, "r must be at most 2147483647, not 10000000000"),
        ({"target_modules": 3}, "target_modules must be a list of strs, not 3"),
        ({"target_modules": "("}, r"target_modules '\(': "),
        ({"layers_to_transform": ["a"]}, "layers_to_transform must be a list of ints"),
        ({"layers_pattern": 1}, "layers_pattern must be a list of strs"),
        ({"layers_pattern": "(a|a)*"}, r"layers_pattern \['\(a.*is not supported"),
    ],
)
def test_options_that_are_refused(saved, options, message):
    edit_config(saved, **options)
    with pytest.raises(RagJaxError, match=f"adapter_config.json: {message}"):
        lora.load_peft(saved, load_model("llama_tied"))


GATE = "base_model.model.model.layers.0.mlp.gate_proj"


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"r": 4}, None, rf"{GATE}.lora_A.weight has shape \[2, 32\], not \[4, 32\]"),
        ({}, lambda t: t.pop(f"{GATE}.lora_B.weight"), rf"missing {GATE}.lora_B.weight"),
        (
            {},
            lambda t: t.update({f"{GATE}.lora_magnitude_vector": np.zeros(3, "f")}),
            rf"no place for {GATE}.lora_magnitude_vector \[3\]",
        ),
        ({"target_modules": ["gate_proj"]}, None, "no place for .*down_proj.lora_A.weight"),
        (
            {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
            None,
            "missing .*q_pr",
        ),
        ({"target_modules": ["c_attn"]}, None, r"no linear layer is one of \['c_attn'\]"),
        (
            {},
            lambda t: t.update({f"{GATE}.lora_A.weight": np.zeros((2, 32), np.int32)}),
            f"{GATE}.lora_A.weight is I32; only float weights are read",
        ),
    ],
)
def test_tensors_that_do_not_fit(saved, options, change, message):
    edit_config(saved, **options)
    if change:
        edit_tensors(saved, change)
    with pytest.raises(
        RagJaxError, match=f"does not fit its tensors and the base model: .*{message}"
    ):
        lora.load_peft(saved, load_model("llama_tied"))


def test_another_base_model(saved):
    with pytest.raises(RagJaxError, match="is an adapter for another base model"):
        lora.load_peft(saved, load_model("llama3"))
    edit_tensors(saved, lambda tensors: None)  # as PEFT writes it, without our fingerprint
    with pytest.raises(RagJaxError, match="does not fit its tensors and the base model"):
        lora.load_peft(saved, load_model("llama3"))
    lora.load_peft(saved, load_model("llama_tied"))
    other = replace(load_model("llama_tied"), fingerprint="")
    lora.load_peft(saved, other)


def test_missing_and_damaged_files(saved, tmp_path):
    model = load_model("llama_tied")
    with pytest.raises(RagJaxError, match="adapter_config.json is missing: name a folder"):
        lora.load_peft(tmp_path / "nothing", model)
    weights, config = saved / "adapter_model.safetensors", saved / "adapter_config.json"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(RagJaxError, match="truncated or not a safetensors file"):
        lora.load_peft(saved, model)
    weights.unlink()
    with pytest.raises(RagJaxError, match="adapter_model.safetensors is missing$"):
        lora.load_peft(saved, model)
    (saved / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(RagJaxError, match="is missing; pickled .bin weights are not read"):
        lora.load_peft(saved, model)
    for text in ("{", "\xff"):
        config.write_text(text, "latin-1")
        with pytest.raises(RagJaxError, match="adapter_config.json is not valid JSON"):
            lora.load_peft(saved, model)
    config.write_text("[]")
    with pytest.raises(RagJaxError, match="must hold a JSON object"):
        lora.load_peft(saved, model)


def test_what_is_not_saved(saved, tmp_path):
    model = load_model("llama_tied")

    def save(adapter, folder=saved):
        lora.save_peft(adapter, folder, model, alpha=1)

    with pytest.raises(RagJaxError, match="embed/embedding is no kernel of a linear layer"):
        save(make_adapter(model, "embed/.*"))
    with pytest.raises(RagJaxError, match=r"layers_0/ffn/up/kernel has .* \(of a bank, save one"):
        save(lora.stack([make_adapter(model, ".*/up/kernel")] * 2))
    two = make_adapter(model, ".*/up/kernel"), make_adapter(model, ".*/down/kernel", rank=4)
    both = {
        layer: {"ffn": two[0][layer]["ffn"] | two[1][layer]["ffn"]}
        for layer in ("layers_0", "layers_1")
    }
    with pytest.raises(RagJaxError, match=r"its ranks \[2, 4\] differ"):
        save(both)
    with pytest.raises(RagJaxError, match="it has no kernels"):
        save({})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("keep me")
    with pytest.raises(RagJaxError, match="contains notes.txt, which is not part of an adapter"):
        save(make_adapter(model), tmp_path / "other")
    # Nothing of all that touched what had been saved before.
    adapter, _ = lora.load_peft(saved, model)
    assert_same(adapter, make_adapter(model, FFN))
