"""BART and DPR with random weights against transformers, live, over configs the files don't cover.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.decoding import append, encode_source, generate, init_cache
from rag_jax.models import load
from rag_jax.models import save as save_model
from rag_jax.retrieval import embed

pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARY = 300


def randomise(model):
    """Weights large enough that attention is far from uniform and norms and biases matter."""
    import torch

    with torch.no_grad():
        for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter.is_floating_point():
                scale = "norm" in name.lower() and "bias" not in name
                parameter.copy_(torch.randn(parameter.shape) * 0.2 + scale)
    return model.eval()


def save(model, tokenizer, folder):
    model.save_pretrained(folder, max_shard_size="50KB")
    for path in (GOLDEN / tokenizer).glob("tokenizer*"):
        shutil.copy(path, folder)
    return load(folder)


def make_batch(rng, rows, width, high=VOCABULARY):
    """Tokens and masks padded on the right and on the left by turns, no row empty."""
    tokens, mask = rng.integers(0, high, (rows, width)), np.zeros((rows, width), np.int64)
    for i, length in enumerate(rng.integers(1, width + 1, rows)):
        mask[i, :length] = 1
        mask[i] = mask[i, :: 1 if i % 2 else -1]
    return tokens, mask


@pytest.fixture(
    params=[
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "scale_embedding": True},
        {"d_model": 48, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 12},
        {"d_model": 64, "decoder_attention_heads": 8, "decoder_ffn_dim": 100, "pad_token_id": 5},
    ],
    ids=lambda settings: f"d_model{settings['d_model']}",
)
def barts(request, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {
        "vocab_size": VOCABULARY, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 70,
        "decoder_ffn_dim": 50, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
        "max_position_embeddings": 40,
    }  # fmt: skip
    torch.manual_seed(request.param_index)
    config = BartConfig(**(sizes | request.param), attn_implementation="eager")
    theirs = randomise(BartForConditionalGeneration(config))
    return theirs, save(theirs, "bart", tmp_path)


def test_bart_logits_and_cached_decoding(barts):
    import torch

    theirs, ours = barts
    rng = np.random.default_rng(0)
    (tokens, mask), (decoder_tokens, decoder_mask) = make_batch(rng, 8, 33), make_batch(rng, 8, 21)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask),
            decoder_input_ids=torch.tensor(decoder_tokens),
            decoder_attention_mask=torch.tensor(decoder_mask), use_cache=False,
        ).logits.numpy()  # fmt: skip
    apply = jax.jit(partial(ours.model.apply, {"params": ours.params}))
    logits = np.asarray(apply(tokens, decoder_tokens, mask, decoder_mask))
    real = decoder_mask.astype(bool)
    print("logits", np.abs(logits - expected)[real].max())
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-4, rtol=0)

    # Through the cache, in two chunks, every source under two rows. A cache counts real tokens, so
    # rows that are padded on the left are compared with transformers reading them unpadded.
    source = encode_source(ours.model, ours.params, tokens, mask.astype(bool))
    cache = init_cache(ours.model, 16, prefix=source)
    twice, twice_mask = decoder_tokens.repeat(2, 0), decoder_mask.repeat(2, 0).astype(bool)
    twice[1::2] = rng.integers(0, VOCABULARY, twice[1::2].shape)
    hidden = []
    for part in (slice(0, 12), slice(12, 21)):
        output, cache = append(
            ours.model, ours.params, cache, jnp.asarray(twice[:, part]), twice_mask[:, part]
        )
        hidden.append(output.hidden)
    hidden = jnp.concatenate(hidden, axis=1)
    logits = ours.model.apply({"params": ours.params}, hidden, method="logits")
    for b in range(16):
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(tokens[b // 2][None]),
                attention_mask=torch.tensor(mask[b // 2][None]),
                decoder_input_ids=torch.tensor(twice[b][twice_mask[b]][None]), use_cache=False,
            ).logits.numpy()[0]  # fmt: skip
        np.testing.assert_allclose(logits[b][twice_mask[b]], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize("eos", [None, 2])
def test_bart_greedy_generation(barts, bos, eos, tmp_path):
    """Forced tokens: theirs overrule the logits at two places, ours are the start and the limit."""
    import torch

    theirs, _ = barts
    theirs.generation_config.forced_bos_token_id = bos
    theirs.generation_config.forced_eos_token_id = eos
    theirs.final_logits_bias[0, 2] = 1.5  # some rows end before the limit
    ours = save(theirs, "bart", tmp_path / "again")
    assert (ours.config.forced_bos_id, ours.config.forced_eos_id) == (bos, eos)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(6, VOCABULARY, n).tolist() for n in (1, 40, 17, 9, 33, 25, 8, 2)]
    tokens = np.full((8, 40), theirs.config.pad_token_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    mask = np.arange(40) < np.asarray([len(prompt) for prompt in prompts])[:, None]
    for limit in (3, 20):
        expected = theirs.generate(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long(), num_beams=1,
            do_sample=False, max_new_tokens=limit,
        )  # fmt: skip
        free = limit - (bos is not None) - (eos is not None)
        texts = generate(ours.model, ours.params, prompts, max_tokens=free, stop_ids=[2])
        start = list(ours.config.start_ids)
        for row, text in zip(expected.tolist(), texts, strict=True):
            end = row.index(2, 1) if 2 in row[1:] else len(row)
            assert row[:end] == [*start, *text]


@pytest.mark.parametrize("kind", ["DPRQuestionEncoder", "DPRContextEncoder"])
@pytest.mark.parametrize("projection", [0, 24])
def test_dpr_embeddings(kind, projection, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    torch.manual_seed(projection)
    config = transformers.DPRConfig(
        vocab_size=200, hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
        intermediate_size=80, max_position_embeddings=50, projection_dim=projection,
    )  # fmt: skip
    theirs = randomise(getattr(transformers, kind)(config))
    ours = save(theirs, f"dpr_{'question' if 'Q' in kind else 'context'}", tmp_path)
    tokens, mask = make_batch(np.random.default_rng(0), 12, 50, high=200)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask)).pooler_output
    embeddings = embed(ours.model, ours.params, jnp.asarray(tokens), jnp.asarray(mask))
    assert embeddings.shape == (12, projection or 48)
    print("embeddings", np.abs(np.asarray(embeddings) - expected.numpy()).max())
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=1e-4, rtol=0)
    save_model(ours, tmp_path / "saved")
    again = getattr(transformers, kind).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        again = again(torch.tensor(tokens), attention_mask=torch.tensor(mask)).pooler_output
    np.testing.assert_array_equal(again, expected)


def test_bart_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    core = json.loads((GOLDEN / "bart" / "tokenizer.json").read_text("utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(core["vocab"]), "utf-8")
    merges = "\n".join(["#version: 0.2", *map(" ".join, core["merges"])])
    (tmp_path / "merges.txt").write_text(merges, "utf-8")
    theirs = transformers.BartTokenizer.from_pretrained(tmp_path)
    ours = load(GOLDEN / "bart").tokenizer.from_folder(tmp_path)
    for text in ("The capital of France is Paris.", " it's\n\n2 a", "東京 naïve \U0001f5fc", "a"):
        assert [ours.bos_id, *ours.encode(text), ours.eos_id] == theirs.encode(text)
