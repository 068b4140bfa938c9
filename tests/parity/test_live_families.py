"""Every family of decoders against transformers, with weights that are random and tiny.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax import lora
from rag_jax.decoding import generate
from rag_jax.models import load, save
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.vocabulary import grow_vocabulary

sys.path.append(str(Path(__file__).parents[1] / "golden"))

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 290,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.05, 1.1, 1.2],
    "long_factor": [1.3, 2.0, 5.0, 20.0],
}
CASES = {
    "llama2": ("Llama", {"num_attention_heads": 6, "rope_parameters": PLAIN}),
    "llama2-tied": (
        "Llama",
        {"num_attention_heads": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    "llama3-grouped": (
        "Llama",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": LLAMA3},
    ),
    "llama3-tied-wide-heads": (
        "Llama",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "mistral": (
        "Mistral",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": None},
    ),
    "qwen2": ("Qwen2", {"num_attention_heads": 6, "num_key_value_heads": 2}),
    "qwen2-tied": (
        "Qwen2",
        {"num_attention_heads": 6, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "llama-linear": (
        "Llama",
        {
            "num_attention_heads": 6,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
    ),
    "mistral-sliding": (
        "Mistral",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": 6},
    ),
    "qwen2-sliding": (
        "Qwen2",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("Qwen3", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}),
    "qwen3-tied-sliding": (
        "Qwen3",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
    "gemma3-all-sliding": (
        "Gemma3Text",
        {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16},
    ),
    "smollm3": (
        "SmolLM3",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "no_rope_layers": [1, 0, 1]},
    ),
    "smollm3-untied-sliding": (
        "SmolLM3",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 6,
        },
    ),
    "phi3": ("Phi3", {"num_attention_heads": 6, "sliding_window": 128}),
    "phi3-sliding": ("Phi3", {"num_attention_heads": 6, "sliding_window": 7}),
    "phi3-grouped-long": (
        "Phi3",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rope_parameters": LONG,
            "original_max_position_embeddings": 16,
            "sliding_window": 2048,
        },
    ),
    "phi3-partial-tied-long": (
        "Phi3",
        {
            "num_attention_heads": 3,
            "tie_word_embeddings": True,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 16,
        },
    ),
    "stablelm": (
        "StableLm",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "rope_parameters": {"rope_theta": 1000.0, "partial_rotary_factor": 0.25},
        },
    ),
    "stablelm-grouped-biased-tied": (
        "StableLm",
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "use_qkv_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 1000.0, "partial_rotary_factor": 0.5},
        },
    ),
}
# Of these, the first two rows are longer than the 16 tokens of the short factors.
LENGTHS = (23, 17, 16, 9, 1)


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """A model of theirs, and ours from the folder that theirs was saved in."""
    from make import make_llama_tokenizer, randomise

    kind, settings = CASES[request.param]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **settings)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    theirs = theirs.eval()
    randomise(theirs)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    make_llama_tokenizer().save_pretrained(folder)
    return theirs, load(folder)


def make_rows(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SIZES["vocab_size"], length) for length in LENGTHS]


def read_theirs(model, row):
    """Logits of one row, alone and without padding."""
    with torch.no_grad():
        return model(torch.tensor(np.asarray(row))[None]).logits[0].float().numpy()


def pad(rows, left):
    width = max(map(len, rows))
    tokens, mask = np.full((len(rows), width), 5, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if left else slice(0, len(row))
        tokens[i, where], mask[i, where] = row, True
    return tokens, mask


run = jax.jit(
    lambda model, params, tokens, mask: model.apply({"params": params}, tokens, mask=mask),
    static_argnums=0,
)


def read_ours(model, params, rows, left=False):
    """Logits of every row, padded into one batch."""
    tokens, mask = pad(rows, left)
    logits = np.asarray(run(model, params, tokens, mask))
    return [read[real] for read, real in zip(logits, mask, strict=True)]


@pytest.mark.parametrize("left", [False, True])
def test_logits(case, left):
    """Rows of unequal length in one batch of ours, each of them alone in theirs."""
    theirs, ours = case
    rows = make_rows()
    for row, read in zip(rows, read_ours(ours.model, ours.params, rows, left), strict=True):
        expected = read_theirs(theirs, row)
        assert expected.std() > 0.5
        np.testing.assert_allclose(read, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("longest", [16, 23])
def test_logits_of_padded_batches(case, left, longest):
    """The same padded batch in both, all of its rows on one side of a change of factors."""
    theirs, ours = case
    rows = [row[:longest] for row in make_rows(1)]
    if longest == 23:
        rows = [np.concatenate([row, rows[0]])[: 23 - i] for i, row in enumerate(rows)]
    tokens, mask = pad(rows, left)
    logits = np.asarray(run(ours.model, ours.params, tokens, mask))
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(positions),
        ).logits.numpy()  # fmt: skip
    np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4, rtol=0)


def test_greedy_continuations(case):
    """Cached decoding of ours against theirs, within 16 tokens."""
    theirs, ours = case
    prompts = [row[:count].tolist() for row, count in zip(make_rows(2), (8, 5, 3, 1), strict=False)]
    if hasattr(ours.config.rope_scaling, "check_cache"):
        # `generate` pads to 32 slots, which the cache of this model does not have.
        written = [greedy(ours, prompt, 8) for prompt in prompts]
    else:
        written = generate(ours.model, ours.params, prompts, max_tokens=8, stop_ids=[])
    for prompt, tokens in zip(prompts, written, strict=True):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=8, min_new_tokens=8, do_sample=False,
                eos_token_id=None,
            )[0, len(prompt) :]  # fmt: skip
        assert tokens == expected.tolist()


def greedy(model, prompt, count):
    """Without a program that pads: the prompt into a cache, then one token at a time."""
    from rag_jax.decoding.cache import append, init_cache

    cache, chunk, written = init_cache(model.model, 1), prompt, []
    for _ in range(count):
        mask = np.ones((1, len(chunk)), bool)
        output, cache = append(
            model.model, model.params, cache, jnp.asarray([chunk]), jnp.asarray(mask)
        )
        logits = model.model.apply({"params": model.params}, output.hidden[0, -1], method="logits")
        chunk = [int(logits.argmax())]
        written += chunk
    return written


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 30_000])
def test_saved_folders(case, shard_bytes, tmp_path):
    """With an adapter folded in, so that no file of theirs is what is read."""
    _, ours = case
    adapter = lora.init(jax.random.key(0), ours.params, targets=".*kernel", rank=2)
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, adapter)
    params = lora.fold(ours.params, adapter, scale=1.0)
    changed = type(ours)(ours.config, ours.model, params, ours.tokenizer, "")
    save(changed, tmp_path / "saved", shard_bytes=shard_bytes)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()) and theirs.dtype == torch.float32
    rows = make_rows(3)
    before, after = (read_ours(ours.model, p, rows) for p in (ours.params, params))
    for row, old, new in zip(rows, before, after, strict=True):
        np.testing.assert_allclose(new, read_theirs(theirs, row), atol=1e-4, rtol=0)
        assert np.abs(new - old).max() > 0.05


def test_saved_vocabulary(case, tmp_path):
    """New tokens and padding: the same ids, and logits of every token, in transformers."""
    _, ours = case
    grown = grow_vocabulary(ours, ["<EOQ>", "<Self>"], multiple=64)
    save(grown, tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(tokenizer) == grown.tokenizer.vocab_size == 292
    text = "Where is Zürich?<EOQ> In Switzerland <Self>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert (ids.index(290) > 3) and ids[-1] == 291
    pieces = [grown.tokenizer.encode(p) for p in ("Where is Zürich?", " In Switzerland ")]
    assert ids == [*pieces[0], 290, *pieces[1], 291]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    ) == grown.tokenizer.encode_chat(chat)
    logits = grown.model.apply({"params": grown.params}, jnp.asarray(ids[:16])[None])[0]
    expected = read_theirs(theirs, ids[:16])
    assert logits.shape == expected.shape == (16, 320)
    np.testing.assert_allclose(logits[:, :292], expected[:, :292], atol=1e-4, rtol=0)
    assert (expected.argmax(axis=-1) < 292).all()  # nor does theirs prefer a row of padding


def test_saved_always_long(tmp_path):
    """A model whose choice is made beforehand is the same in transformers."""
    from dataclasses import replace

    from make import make_llama_tokenizer, randomise

    kind, settings = CASES["phi3-grouped-long"]
    theirs = getattr(transformers, f"{kind}ForCausalLM")(
        transformers.Phi3Config(**SIZES, **settings)
    )
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    make_llama_tokenizer().save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    config = replace(ours.config, rope_scaling=ours.config.rope_scaling.always_long())
    long = replace(ours, config=config, model=Decoder(config))
    save(long, tmp_path / "ours")
    assert load(tmp_path / "ours").config == config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    rows = make_rows(4)
    for row, logits in zip(rows, read_ours(long.model, long.params, rows), strict=True):
        np.testing.assert_allclose(logits, read_theirs(theirs, row), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_real_models_saved(name, tmp_path):
    """SmolLM2 came as GGUF: its tokenizer becomes a file that transformers reads."""
    ours = load(name)
    save(ours, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = ["The capital of France is Paris.", "東京\n\n\t1889 isn't <|im_end|", "  naïve  café"]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == ours.tokenizer.encode(text)
        if name.startswith("smollm2"):
            assert tokenizer.decode(ids) == text
    encoder = name.startswith("all")
    model = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    theirs = model.from_pretrained(tmp_path / "saved").eval()
    row = np.asarray(tokenizer.encode(texts[0]))[None]
    with torch.no_grad():
        read = theirs(torch.tensor(row))
    expected = (read.last_hidden_state if encoder else read.logits).numpy()
    logits = np.asarray(ours.model.apply({"params": ours.params}, jnp.asarray(row)))
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    if not encoder:
        chat = [{"role": "user", "content": "What is the capital of France?"}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids == ours.tokenizer.encode_chat(chat)
        with torch.no_grad():
            written = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
        assert "Paris" in tokenizer.decode(written[0, len(ids) :])
