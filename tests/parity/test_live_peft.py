"""Adapters that go to PEFT and back, and its merging, on tiny random models.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax import lora
from rag_jax.models import load
from rag_jax.models.nn.pooling import MEAN

sys.path.append(str(Path(__file__).parents[1] / "golden"))

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SIZES = {
    "vocab_size": 290,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "Llama": {},
    "Qwen2": {},
    "Phi3": {"sliding_window": 128},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 6, "tie_word_embeddings": False},
}
FFN = ["gate_proj", "up_proj", "down_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", *FFN, "lm_head"]
FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
FUSED |= dict.fromkeys(["q_proj", "k_proj", "v_proj"], "qkv_proj")
OURS_FFN, OURS_ALL = ".*ffn/(gate|up|down)/kernel", ".*/kernel"
TOKENS = np.random.default_rng(0).integers(3, 290, (2, 17))


@pytest.fixture(scope="module", params=list(KINDS))
def base(request, tmp_path_factory):
    """The folder of a model of theirs, and ours from it."""
    from make import make_llama_tokenizer, randomise

    config = getattr(transformers, f"{request.param}Config")(**SIZES, **KINDS[request.param])
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(theirs)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    make_llama_tokenizer().save_pretrained(folder)
    return folder, load(folder)


def load_theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()


def read_theirs(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def read_hidden(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).last_hidden_state.numpy()


def read_ours(ours, adapter, scale):
    params = lora.apply(ours.params, adapter, scale=scale)
    return ours.model.apply({"params": params}, jnp.asarray(TOKENS))


def make_ours(ours, targets, seed=0):
    adapter = lora.init(jax.random.key(0), ours.params, targets=targets, rank=3)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), "f"), adapter)


def make_theirs(folder, names, *, seed=0, **options):
    """PEFT around their model, its adapters drawn anew so that `B` is not zero."""
    if load(folder).config.family == "phi3":
        names = sorted({FUSED.get(name, name) for name in names})
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=12, target_modules=names, **options
    )
    model = peft.get_peft_model(load_theirs(folder), settings).eval()
    draw_theirs(model, "default", seed)
    return model


def draw_theirs(model, adapter, seed):
    torch.manual_seed(seed)
    for name, value in model.named_parameters():
        if f".{adapter}." in name:
            value.data.normal_(std=0.1)


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("targets", [OURS_FFN, OURS_ALL, "layers_1/.*/(up|query)/kernel"])
def test_ours_in_peft(base, tmp_path, targets, rank_stabilized):
    folder, ours = base
    adapter = make_ours(ours, targets)
    lora.save_peft(adapter, tmp_path / "adapter", ours, alpha=12, rank_stabilized=rank_stabilized)
    theirs = peft.PeftModel.from_pretrained(load_theirs(folder), tmp_path / "adapter").eval()
    expected = read_theirs(theirs)
    scale = lora.compute_scale(12, 3, rank_stabilized=rank_stabilized)
    np.testing.assert_allclose(read_ours(ours, adapter, scale), expected, atol=1e-4, rtol=0)
    assert np.abs(expected - read_theirs(load_theirs(folder))).max() > 0.1


@pytest.mark.parametrize("model", ["AutoModelForCausalLM", "AutoModel"])
def test_the_language_model_of_a_model_that_reads_images(model, tmp_path):
    """With its head and without; its own layers alone are adapted, by names of their own."""
    from make import make_llama_tokenizer, randomise

    text = {**SIZES, "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16}
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": 28, "patch_size": 14}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 289}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    randomise(theirs := transformers.AutoModelForImageTextToText.from_config(config))
    theirs.save_pretrained(tmp_path)
    make_llama_tokenizer().save_pretrained(tmp_path)
    ours, auto, headless = load(tmp_path), getattr(transformers, model), model == "AutoModel"
    base = auto.from_pretrained(tmp_path).eval()

    def read(model):
        return read_hidden(model) if headless else read_theirs(model)

    def read_own(adapter, scale):
        params = lora.apply(ours.params, adapter, scale=scale)
        method = "hidden" if headless else None
        found = ours.model.apply({"params": params}, jnp.asarray(TOKENS), method=method)
        return found.hidden if method else found

    pattern = r".*language_model.*(q|up)_proj"
    settings = peft.LoraConfig(r=3, lora_alpha=12, target_modules=pattern)
    adapted = peft.get_peft_model(base, settings).eval()
    draw_theirs(adapted, "default", 0)
    adapted.save_pretrained(tmp_path / "theirs")
    adapter, scale = lora.load_peft(tmp_path / "theirs", ours)
    expected = read(adapted)
    np.testing.assert_allclose(read_own(adapter, scale), expected, atol=1e-4, rtol=0)
    if headless:
        ours = replace(ours, model=ours.model.clone(pooling=MEAN))
    lora.save_peft(adapter, tmp_path / "ours", ours, alpha=12)
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path), tmp_path / "ours")
    np.testing.assert_allclose(read(again.eval()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"names": FFN},
        {"names": ALL},
        {"names": "all-linear"},
        {"names": r".*layers\.(0|2)\.mlp\..*_proj"},
        {"names": FFN, "layers_to_transform": [1]},
        {"names": ["down_proj", "o_proj"], "exclude_modules": r".*layers\.1\..*"},
    ],
)
def test_theirs_in_ours(base, tmp_path, options, rank_stabilized):
    folder, ours = base
    options = {**options, "use_rslora": rank_stabilized}
    names = options.pop("names")
    if isinstance(names, str):  # a pattern stands for itself
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=12, target_modules=names, **options
        )
        theirs = peft.get_peft_model(load_theirs(folder), settings).eval()
        draw_theirs(theirs, "default", 1)
    else:
        theirs = make_theirs(folder, names, **options)
    theirs.save_pretrained(tmp_path / "adapter")
    adapter, scale = lora.load_peft(tmp_path / "adapter", ours)
    expected = read_theirs(theirs)
    np.testing.assert_allclose(read_ours(ours, adapter, scale), expected, atol=1e-4, rtol=0)
    assert np.abs(expected - read_theirs(load_theirs(folder))).max() > 0.1
    # And back again: what ours writes of theirs is theirs.
    stabilized = {"alpha": 12, "rank_stabilized": rank_stabilized}
    lora.save_peft(adapter, tmp_path / "again", ours, **stabilized)
    again = peft.PeftModel.from_pretrained(load_theirs(folder), tmp_path / "again").eval()
    np.testing.assert_allclose(read_theirs(again), expected, atol=1e-5, rtol=0)


def test_merged_as_peft_merges(base, tmp_path):
    """`merge` of three adapters and `add_weighted_adapter(combination_type="cat")`."""
    folder, ours = base
    theirs = make_theirs(folder, FFN)
    names = ["default", "second", "third"]
    for seed, name in enumerate(names[1:], 1):
        theirs.add_adapter(name, theirs.peft_config["default"])
        draw_theirs(theirs, name, seed)
    weights = [1.0, -0.5, 2.0]
    theirs.add_weighted_adapter(names, weights, "merged", combination_type="cat")
    theirs.set_adapter("merged")
    expected = read_theirs(theirs)
    theirs.save_pretrained(tmp_path)
    folders = [tmp_path, tmp_path / "second", tmp_path / "third"]
    adapters = [lora.load_peft(folder, ours)[0] for folder in folders]
    merged = lora.merge(adapters, scale=4.0, weights=np.asarray(weights, np.float32))
    np.testing.assert_allclose(read_ours(ours, merged, 1.0), expected, atol=1e-4, rtol=0)
    # Theirs, as PEFT wrote it: the weights are in its `A`, the scale is 1.
    saved, scale = lora.load_peft(tmp_path / "merged", ours)
    assert scale == 1.0
    np.testing.assert_allclose(read_ours(ours, saved, scale), expected, atol=1e-4, rtol=0)
    # And ours in theirs.
    lora.save_peft(merged, tmp_path / "ours", ours, alpha=9)
    again = peft.PeftModel.from_pretrained(load_theirs(folder), tmp_path / "ours").eval()
    np.testing.assert_allclose(read_theirs(again), expected, atol=1e-4, rtol=0)


def test_each_row_its_own_adapter(base, tmp_path):
    """One batch with two adapters, and PEFT's `adapter_names`."""
    folder, ours = base
    theirs = make_theirs(folder, FFN)
    theirs.add_adapter("second", theirs.peft_config["default"])
    draw_theirs(theirs, "second", 1)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS), adapter_names=["second", "default"]).logits.numpy()
    bank = lora.stack([lora.load_peft(tmp_path / name, ours)[0] for name in ("second", ".")])
    np.testing.assert_allclose(read_ours(ours, bank, 4.0), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("stabilized", [False, True])
def test_ranks_and_scales_by_layer(base, tmp_path, stabilized):
    folder, ours = base
    patterns = {
        "rank_pattern": {"up_proj": 5, r"layers\.1\.mlp\.down_proj": 1, "nothing": 3},
        "alpha_pattern": {"mlp.gate_proj": 3, "down_proj": 5},
    }
    theirs = make_theirs(folder, FFN, use_rslora=stabilized, **patterns)
    theirs.save_pretrained(tmp_path)
    adapter, scale = lora.load_peft(tmp_path, ours)
    expected = read_theirs(theirs)
    np.testing.assert_allclose(read_ours(ours, adapter, scale), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"lora_bias": True},
        {"trainable_token_indices": [1, 2]},
    ],
)
def test_what_is_refused(tmp_path, options, base):
    from rag_jax.runtime.errors import RagJaxError

    folder, ours = base
    if ours.config.family == "phi3":
        pytest.skip("as for the others")
    make_theirs(folder, FFN, **options).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RagJaxError, match=f"{next(iter(options))} .* is not supported"):
        lora.load_peft(tmp_path / "adapter", ours)
