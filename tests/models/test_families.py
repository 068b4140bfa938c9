"""What sets the decoder's families apart: their configs, biases, rotary positions and caches."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rag_jax import lora
from rag_jax.decoding.cache import append, grow, init_cache, write
from rag_jax.models import load
from rag_jax.models.io.configs import describe_config, read_config
from rag_jax.models.io.sizes import find_sizes
from rag_jax.models.io.slots import list_slots
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import Linear
from rag_jax.models.nn.rope import LlamaScaling, LongScaling, rotary_angles, rotate
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"
NEWER = ("mistral", "qwen3", "gemma3", "smollm3")
FAMILIES = ("llama_tied", "llama_untied_sharded", "llama3", "phi3", "qwen2", "stablelm", *NEWER)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


def read_golden(name):
    arrays = np.load(GOLDEN / name / "golden.npz")
    return arrays["tokens"], arrays["mask"].astype(bool), arrays["logits"]


@partial(jax.jit, static_argnums=0)
def run(model, params, tokens, mask=None):
    return model.apply({"params": params}, tokens, mask=mask)


@partial(jax.jit, static_argnums=0)
def extend(model, params, cache, tokens, mask, slot):
    """Logits of a chunk written at `slot`, and the cache with it."""
    output, cache = write(model, params, cache, tokens, mask, slot=slot)
    return model.apply({"params": params}, output.hidden, method="logits"), cache


@pytest.mark.parametrize("name", ["llama3", "phi3", "qwen2", "stablelm", *NEWER])
def test_cached_chunks_give_the_logits_of_one_pass(name):
    """A prefix that two rows share, then chunks in which padding stands anywhere."""
    loaded = load(GOLDEN / name)
    config = loaded.config
    if name == "phi3":
        config = replace(config, rope_scaling=config.rope_scaling.always_long())
    model, params = Decoder(config), loaded.params
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (2, 11))
    rows[1, :3] = rows[0, :3]
    prefix = grow(init_cache(model, 1), 3)
    _, prefix = extend(model, params, prefix, rows[:1, :3], np.ones((1, 3), bool), 0)
    cache = grow(init_cache(model, 2, prefix=prefix), 12)
    # By chunk and row.
    places = [["111", "100"], ["001", "111"], ["010", "110"], ["111", "101"]]
    masks = np.asarray([[[c == "1" for c in row] for row in chunk] for chunk in places])
    done = [3, 3]
    expected = np.asarray(run(model, params, rows))
    for i, mask in enumerate(masks):
        tokens = np.full((2, 3), 7)
        spans = [
            slice(start, start + count) for start, count in zip(done, mask.sum(1), strict=True)
        ]
        for row, span in enumerate(spans):
            tokens[row, mask[row]] = rows[row, span]
        logits, cache = extend(model, params, cache, tokens, mask, 3 * i)
        for row, span in enumerate(spans):
            close(np.asarray(logits[row])[mask[row]], expected[row, span])
        done = [span.stop for span in spans]
    assert done == [11, 11]


def test_each_row_chooses_its_factors_by_its_own_length():
    """The golden rows were read alone: one is beyond the short factors and three are not."""
    tokens, mask, logits = read_golden("phi3")
    loaded = load(GOLDEN / "phi3")
    scaling = loaded.config.rope_scaling
    assert scaling.original_length == 8 and (mask.sum(1) > 8).tolist() == [True] + [False] * 3
    always = Decoder(replace(loaded.config, rope_scaling=scaling.always_long()))
    ours = np.asarray(run(always, loaded.params, tokens, mask))
    close(ours[0], logits[0])
    assert np.abs(ours[1] - logits[1])[mask[1]].max() > 1e-2
    # Eight tokens are the last that the short factors serve, as in transformers.
    lengths = np.asarray([8, 9])
    rows, real = tokens[[0, 0]], np.arange(11) < lengths[:, None]
    never = replace(scaling, long_factors=scaling.short_factors)
    short = run(Decoder(replace(loaded.config, rope_scaling=never)), loaded.params, rows, real)
    both = run(loaded.model, loaded.params, rows, real)
    for row, length in enumerate(lengths):
        same = np.allclose(short[row, :length], both[row, :length], atol=1e-5)
        assert same == (length == 8)


def test_a_cache_does_not_outgrow_the_short_factors():
    loaded = load(GOLDEN / "phi3")

    def read(cache, count):
        chunk = jnp.zeros((1, count), jnp.int32)
        read_chunk = partial(append, loaded.model)
        return jax.eval_shape(read_chunk, loaded.params, cache, chunk, chunk == 0)[1]

    three = read(init_cache(loaded.model, 1), 3)
    read(three, 5)
    message = "a cache of 9 slots would mix keys for short texts, up to 8 tokens, .*always_long"
    with pytest.raises(RagJaxError, match=message):
        read(three, 6)
    after = replace(jax.eval_shape(lambda: init_cache(loaded.model, 1)), prefix=three)
    read(after, 5)
    with pytest.raises(RagJaxError, match="a cache of 9 slots"):
        read(after, 6)


@pytest.mark.parametrize("name", ["qwen2", "phi3", "gemma3"])
def test_adapters_on_every_kernel(name):
    """Unfused beside a bias or on part of a tensor that is fused on disk, and folded: the same."""
    loaded = load(GOLDEN / name)
    adapter = lora.init(jax.random.key(0), loaded.params, targets=".*kernel", rank=2)
    adapter = jax.tree.map(lambda leaf: leaf + 0.03, adapter)
    count = sum(path[-1].key == "a" for path, _ in jax.tree.leaves_with_path(adapter))
    assert count == 2 * 7 + (not loaded.config.tie_embeddings)
    tokens = jnp.asarray(read_golden(name)[0])
    unfused = run(loaded.model, lora.apply(loaded.params, adapter, scale=2.0), tokens)
    folded = run(loaded.model, lora.fold(loaded.params, adapter, scale=2.0), tokens)
    np.testing.assert_allclose(unfused, folded, atol=1e-4)
    assert np.abs(folded - run(loaded.model, loaded.params, tokens)).max() > 0.1


def test_linear_with_a_bias():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "bias": (3,), "lora_a": (4, 2), "lora_b": (2, 3)}
    p = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(5, 4)).astype(np.float32)
    layer = Linear(3, use_bias=True)
    plain = {name: p[name] for name in ("kernel", "bias")}
    assert jax.tree.map(np.shape, dict(layer.init(jax.random.key(0), x)["params"])) == {
        "kernel": (4, 3),
        "bias": (3,),
    }
    close(layer.apply({"params": plain}, x), x @ p["kernel"] + p["bias"])
    adapted = x @ (p["kernel"] + p["lora_a"] @ p["lora_b"]) + p["bias"]
    close(layer.apply({"params": p}, x), adapted)


def speeds(**options):
    """Radians a token of each pair, read off the angles at position 1."""
    cos, sin = rotary_angles(jnp.asarray([[1]]), **options)
    return np.arctan2(sin, cos)[0, 0, 0]


def test_llama_scaling_with_the_numbers_of_llama_3_2():
    """Meta's published settings; each pair by the rule as its paper's code states it."""
    plain = speeds(rotary_dim=64, theta=500000.0)
    scaling = LlamaScaling(32.0, 1.0, 4.0, 8192)
    scaled = speeds(rotary_dim=64, theta=500000.0, scaling=scaling)
    seen = set()
    for before, after in zip(plain.astype(np.float64), scaled, strict=True):
        wavelength = 2 * np.pi / before
        if wavelength < 8192 / 4:
            expected, kind = before, "fast"
        elif wavelength > 8192:
            expected, kind = before / 32, "slow"
        else:
            smooth = (8192 / wavelength - 1) / 3
            expected, kind = (1 - smooth) * before / 32 + smooth * before, "between"
        seen.add(kind)
        np.testing.assert_allclose(after, expected, rtol=2e-6)
    assert seen == {"fast", "slow", "between"}


def test_partial_rotation_leaves_the_rest_of_the_head():
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 10)).astype(np.float32)
    angles = rotary_angles(jnp.arange(3)[None], rotary_dim=4, theta=100.0)
    turned = np.asarray(rotate(x, angles))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_allclose(turned[..., :4], rotate(x[..., :4], angles), atol=1e-6)
    assert np.abs(turned[..., 1:, :4] - x[..., 1:, :4]).max() > 0.1


def change_config(name, folder, **fields):
    """The golden model's config.json with some fields changed, or left out where None."""
    config = json.loads((GOLDEN / name / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


LONGROPE = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 4.0, 9.0]}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window 'yes' is not supported"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention", "full_attention"]},
            "layer_types 'sliding_attention' is not supported",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"]},
            "layer_types has 1 entries, num_hidden_layers is 2",
        ),
        ("qwen2", {"num_experts": 60}, "num_experts 60: mixtures of experts are not supported"),
        ("llama3", {"sliding_window": 31}, "sliding_window 31 is not supported: it is shorter"),
        ("phi3", {"sliding_window": "x"}, "sliding_window must be a positive integer, not 'x'"),
        ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual True is not supp"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm True is not supported"),
        ("stablelm", {"head_dim": 16}, "head_dim 16 is not supported"),
        (
            "stablelm",
            {"rope_parameters": {"partial_rotary_factor": 0.4}},
            "the rotary dimension 3 must be an even number from 2 to the head dimension 8",
        ),
        (
            "stablelm",
            {"rope_parameters": {"partial_rotary_factor": 1.5}},
            "the rotary dimension 12 must be an even number",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", **LONGROPE}},
            "short_factor must be a list of 4 positive numbers",
        ),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "partial_rotary_factor": 0.75,
                    "short_factor": [1.0, 1.1, -1.3],
                }
            },
            "short_factor must be a list of 3 positive numbers",
        ),
        ("phi3", {"original_max_position_embeddings": 1}, "must be an integer of 2 or more, not 1"),
        ("llama3", {"rope_parameters": {"rope_type": "dynamic"}}, "rope scaling 'dynamic' is not"),
        (
            "llama3",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                }
            },
            "high_freq_factor must be above low_freq_factor",
        ),
        ("llama3", {"vocab_padding": -1}, "vocab_padding must be an integer of 0 or more, not -1"),
        ("llama3", {"vocab_padding": 40}, "vocab_padding 40 must be below vocab_size 40"),
        ("llama3", {"model_type": "mistral"}, None),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supp"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supp"),
        ("gemma3", {"use_bidirectional_attention": "yes"}, "use_bidirectional_attention 'yes' is"),
        ("gemma3", {"is_causal": False}, "is_causal False is not supported where layers"),
        ("mistral", {"is_causal": False}, "is_causal False is not supported where layers"),
        ("qwen2", {"is_causal": "no"}, "is_causal 'no' is not supported"),
        ("gemma3", {"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported"),
        (
            "gemma3",
            {"layer_types": ["chunked_attention"] * 2},
            "layer_types 'chunked_att",
        ),
        ("gemma3", {"layer_types": "full_attention"}, "layer_types must be a list, not 'full_"),
        ("gemma3", {"sliding_window": -1}, "sliding_window must be a positive integer, not -1"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters 'rope_theta' is not"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type 'linear' is not supported",
        ),
        ("gemma3", {"query_pre_attn_scalar": 0.5}, "query_pre_attn_scalar must be a positive int"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers must be a list of a 0 or 1 for each"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers must be a list of a 0 or 1 for"),
        ("llama3", {"model_type": "mistral", "max_position_embeddings": 32768}, None),
        ("llama3", {"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts 8: mix"),
        ("llama3", {"model_type": "gemma2"}, "model_type 'gemma2' is not supported; supported are"),
    ],
)
def test_configs_read_or_refused(name, fields, message, tmp_path):
    path = change_config(name, tmp_path, **fields)
    if message is None:
        assert read_config(path).family == fields["model_type"]
        return
    with pytest.raises(RagJaxError, match=f"config.json: .*{message}"):
        read_config(path)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "gemma3"])
def test_a_decoder_that_is_not_causal(name, tmp_path):
    """Its tokens attend to later ones, as encoders' do that are made of decoders."""
    full = {"layer_types": ["full_attention"] * 2} if name == "gemma3" else {}
    path = change_config(name, tmp_path, is_causal=True, **full)
    causal = read_config(path)
    config = read_config(change_config(name, tmp_path, is_causal=False, **full))
    assert config == replace(causal, bidirectional=True)
    path.write_text(json.dumps(describe_config(config)))
    assert read_config(path) == config
    path.write_text(json.dumps({**json.loads(path.read_text()), "is_causal": None}))
    assert read_config(path) == config
    tokens = np.asarray([[5, 6, 7], [5, 6, 8]])
    for own, same in ((causal, True), (config, False)):
        first = run(Decoder(own), load(GOLDEN / name).params, tokens)[:, 0]
        assert np.array_equal(*first) == same


def test_fields_where_earlier_versions_keep_them(tmp_path):
    scaling = {"type": "su", **LONGROPE}
    older = {"rope_theta": 100.0, "partial_rotary_factor": 0.75, "rope_parameters": None}
    path = change_config("phi3", tmp_path, rope_scaling=scaling, **older)
    assert read_config(path) == load(GOLDEN / "phi3").config
    path = change_config("stablelm", tmp_path, rope_parameters=None, rope_theta=100.0)
    expected = replace(load(GOLDEN / "stablelm").config, rotary_fraction=0.25)
    assert read_config(path) == expected


def test_gemma_as_earlier_versions_write_it(tmp_path):
    """A pattern in place of a list, and rotary fields at the top level."""
    older = {
        "rope_parameters": None,
        "rope_theta": 1000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_local_base_freq": 100.0,
        "layer_types": None,
        "sliding_window_pattern": 2,
    }
    wanted = load(GOLDEN / "gemma3").config
    assert read_config(change_config("gemma3", tmp_path, **older)) == wanted


def test_the_language_model_of_a_gemma_with_images(tmp_path):
    """Under either of the names that versions of transformers give it; the rest is left out."""
    text = json.loads((GOLDEN / "gemma3" / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    tensors = load_file(GOLDEN / "gemma3" / "model.safetensors")
    wanted, rows = load(GOLDEN / "gemma3"), np.zeros((2, 2), np.float32)
    older = {"model.": "language_model.model."}, "vision_tower.a.weight"
    newer = {"model.": "model.language_model."}, "model.multi_modal_projector.a"
    for i, (names, other) in enumerate((older, newer)):
        folder = tmp_path / str(i)
        shutil.copytree(GOLDEN / "gemma3", folder)
        (folder / "config.json").write_text(json.dumps(config))
        renamed = {name.replace(*pair): x for pair in names.items() for name, x in tensors.items()}
        save_file(renamed | {other: rows}, folder / "model.safetensors")
        found = load(folder)
        assert found.config == wanted.config
        jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
        for tied in (True, False):  # the whole model's, not the language model's
            untied = config | {"tie_word_embeddings": tied}
            (folder / "config.json").write_text(json.dumps(untied))
            assert read_config(folder / "config.json").tie_embeddings == tied
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": 1}))
    with pytest.raises(RagJaxError, match="config.json: text_config must be a JSON object, not 1"):
        read_config(folder / "config.json")


def test_published_sizes_have_the_published_numbers_of_parameters():
    """And a product with every weight but the norms' counts twice for a token."""
    published = {
        "Qwen/Qwen3-0.6B": 596_049_920,
        "Qwen/Qwen3-8B": 8_190_735_360,
        "google/gemma-3-270m": 268_098_176,
        "google/gemma-3-1b-it": 999_885_952,
        "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    }
    for name, wanted in published.items():
        config = find_sizes(name)
        shapes = [slot.shape for slot in list_slots(config)]
        assert sum(map(math.prod, shapes)) == wanted
        kernels = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
        table = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
        assert config.count_flops(1, 1) == 2 * (kernels - table)


def test_phi_3_5_mini(tmp_path):
    """The published settings: a window as long as the context, an attention factor from both."""
    path = tmp_path / "config.json"
    published = {
        "model_type": "phi3",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "vocab_size": 32064,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
    }
    path.write_text(json.dumps(published))
    config = read_config(path)
    assert config.head_dim == config.rotary_dim == 96 and config.norm_eps == 1e-5
    assert config.rope_scaling.attention_factor == pytest.approx(1.1902380714238083)
    assert config.window is None
    path.write_text(json.dumps(published | {"sliding_window": 2047}))
    assert read_config(path) == replace(
        config, window=2047, sliding_layers=tuple(range(config.num_layers))
    )


def test_key_heads_that_are_null_are_as_many_as_query_heads(tmp_path):
    """As in transformers, where a missing field has the family's own default."""
    path = tmp_path / "config.json"
    fields = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    fields |= {"model_type": "qwen2", "num_attention_heads": 4}
    path.write_text(json.dumps(fields | {"num_key_value_heads": None}))
    assert read_config(path).num_kv_heads == 4
    path.write_text(json.dumps(fields | {"num_attention_heads": 32}))
    assert read_config(path).num_kv_heads == 32


@pytest.mark.parametrize("name", (*FAMILIES, "bert"))
def test_described_configs_read_the_same(name, tmp_path):
    config = load(GOLDEN / name).config
    for changed in (config, replace(config, vocab_size=999)):
        (tmp_path / "config.json").write_text(json.dumps(describe_config(changed)))
        assert read_config(tmp_path / "config.json") == changed


def test_configs_are_hashable():
    """They are static arguments of compiled functions."""
    configs = {load(GOLDEN / name).config for name in FAMILIES}
    assert len(configs) == len(FAMILIES)
    assert isinstance(load(GOLDEN / "phi3").config.rope_scaling, LongScaling)


@pytest.mark.parametrize(
    "scaled",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
        {"rope_parameters": {"sliding_attention": {"type": "linear", "factor": 4.0}}},
    ],
)
def test_scaled_positions_of_modernbert_are_refused(scaled, tmp_path):
    fields = {"model_type": "modernbert", "vocab_size": 128, "hidden_size": 16}
    fields |= {"intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"rope_scaling": {"rope_type": "default"}}))
    assert read_config(path).global_theta == 160_000
    path.write_text(json.dumps(fields | scaled))
    with pytest.raises(RagJaxError, match="linear.* is not supported"):
        read_config(path)


def test_two_windows_of_modernbert(tmp_path):
    """transformers follows `sliding_window`, which it does not write."""
    fields = {"model_type": "modernbert", "vocab_size": 128, "hidden_size": 16}
    fields |= {"intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields | {"local_attention": 16, "sliding_window": 8}))
    assert read_config(path).window == 8
    path.write_text(json.dumps(fields | {"local_attention": 16, "sliding_window": 4}))
    with pytest.raises(RagJaxError, match="sliding_window 4 is not supported"):
        read_config(path)
